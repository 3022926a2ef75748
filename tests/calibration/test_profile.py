"""Ranges: statistics of a tensor's values."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from demi.calibration.profile import COUNTED, Range, RangeProfile, range_of, read_profile
from demi.errors import InputError

numbers = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, 65504.0, float("inf"), float("-inf"), float("nan")])
arrays = hnp.arrays(np.float32, st.integers(0, 40), elements=numbers)

relaxed = settings(max_examples=60, deadline=None)


def counts(found):
    """Return all of a range except `elements_per_set`, which depends on the sets."""
    return {name: getattr(found, name) for name in Range.__slots__ if name != "elements_per_set"}


class TestRange:
    """Range of one tensor."""

    def test_bounds(self):
        """The bounds are the lowest and highest value, and the largest and smallest magnitude."""
        found = range_of(np.float32([-8, 0, 0.25, 3]))

        assert (-8.0, 3.0, 8.0, 0.25) == (found.low, found.high, found.largest, found.smallest)
        assert (4, 1, 4) == (found.count, found.zeros, found.elements_per_set)

    def test_non_finite_values_are_counted_apart(self):
        """NaN and infinities are counted and do not affect the bounds."""
        found = range_of(np.float32([np.nan, np.inf, -np.inf, 2, -1]))

        assert (1, 2) == (found.nans, found.infinities)
        assert (-1.0, 2.0, 2.0) == (found.low, found.high, found.largest)

    def test_no_finite_values(self):
        """Without finite values the bounds are zero."""
        found = range_of(np.float32([np.nan, np.inf]))

        assert (0.0, 0.0, 0.0, 0.0) == (found.low, found.high, found.largest, found.smallest)

    @pytest.mark.parametrize(
        ("values", "whole"), [([1, -2, 0], True), ([1, 0.5], False), ([np.inf, 3], True), ([1e20], True), ([], True)]
    )
    def test_integer_values(self, values, whole):
        """A tensor is integer-valued if every finite element is an integer."""
        assert whole == range_of(np.float32(values)).integer_valued

    def test_many_elements(self):
        """Exponents of a large array are counted on a sample; bounds and counts are those of all elements."""
        values = np.tile(np.float32([0, 1, 1.5, -4]), 1 << 18)
        values[5] = 1e-40
        found = range_of(values)

        assert COUNTED / 2 <= sum(found.exponents) <= COUNTED
        assert (2.0, 4.0) == (found.quantile(0.5), found.quantile(0.9))
        assert (values.size, (1 << 18), pytest.approx(1e-40, rel=1e-4)) == (found.count, found.zeros, found.smallest)

    def test_empty(self):
        """An empty tensor has an empty range."""
        assert Range() == range_of(np.zeros((0, 3), np.float32))

    def test_wider_floats_are_converted(self):
        """float64 is converted to float32 first."""
        assert float(np.float32(0.1)) == range_of(np.array([0.1])).largest

    @relaxed
    @given(arrays, st.lists(st.integers(0, 40), max_size=4))
    @example(np.float32([np.inf, 5, 7]), [1])
    def test_merging_any_split_is_the_range_of_the_whole(self, values, cuts):
        """The merged range does not depend on how the values are split."""
        whole = Range()
        for piece in np.split(values, sorted(min(cut, len(values)) for cut in cuts)):
            whole = whole.merge(range_of(piece))

        assert counts(range_of(values)) == counts(whole)

    @relaxed
    @given(arrays, arrays)
    def test_merging_is_commutative(self, one, other):
        """Merging is commutative."""
        a, b = range_of(one), range_of(other)

        assert a.merge(b) == b.merge(a)

    @relaxed
    @given(arrays)
    def test_quantiles_to_a_factor_of_two(self, values):
        """A quantile is at least the true one, and at most twice as large."""
        magnitudes = np.abs(values[np.isfinite(values) & (values != 0)])
        found = range_of(values)
        for share in (0.1, 0.5, 0.9, 1.0):
            if not magnitudes.size:
                assert found.quantile(share) == 0.0
                continue
            true = float(np.sort(magnitudes)[int(np.ceil(share * magnitudes.size)) - 1])
            assert true <= found.quantile(share) <= max(2 * true, 2.0**-126)

    def test_largest_per_set(self):
        """`elements_per_set` is that of the largest set."""
        merged = range_of(np.ones(3, np.float32)).merge(range_of(np.ones(7, np.float32)))

        assert (7, 10) == (merged.elements_per_set, merged.count)


class TestProfile:
    """Profile of a model."""

    def test_round_trip(self, tmp_path):
        """A profile is read as it was saved."""
        profile = RangeProfile(
            "real.npz", 3, {"x": range_of(np.float32([1, np.nan, 3e38])), "empty": range_of(np.zeros(0))}
        )
        profile.save(tmp_path / "ranges.json")

        assert profile == read_profile(tmp_path / "ranges.json")

    def test_lookup(self):
        """A tensor that was not observed is None for `get`, and an error by index."""
        profile = RangeProfile("", 1, {"x": range_of(np.ones(1))})

        assert 1.0 == profile["x"].high
        assert profile.get("y") is None
        assert profile.get(None) is None

    def test_merge(self):
        """A merged profile has the tensors and origins of both."""
        one = RangeProfile("a.npz", 1, {"x": range_of(np.float32([1])), "y": range_of(np.float32([5]))})
        other = RangeProfile("b.npz", 2, {"x": range_of(np.float32([-3]))})

        merged = one.merge(other)

        assert ("a.npz; b.npz", 3) == (merged.origin, merged.sets)
        assert (-3.0, 1.0, 5.0) == (merged["x"].low, merged["x"].high, merged["y"].high)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "truncated"),
            (b"[]", "Expected `object`"),
            (b'{"schema": 1}', "missing required field `profile`"),
            (b'{"schema": 1, "profile": {"ranges": {"x": {"low": "a"}}}}', "Expected `float`"),
            (b'{"schema": 2, "profile": {}}', "schema 2"),
        ],
    )
    def test_damaged_file(self, tmp_path, content, problem):
        """A damaged file raises an error with its name and the problem."""
        path = tmp_path / "ranges.json"
        path.write_bytes(content)

        with pytest.raises(InputError, match=problem) as caught:
            read_profile(path)

        assert str(path) == caught.value.where

    def test_missing_file(self, tmp_path):
        """A missing file raises an error."""
        with pytest.raises(InputError, match="No such file"):
            read_profile(tmp_path / "none.json")
