"""Comparison of outputs with their FP32 reference: every metric, and its limit."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from demi.accuracy.budget import Budget, Limits
from demi.accuracy.compare import Comparer, compare, relative_l2
from demi.accuracy.detector import Detector

floats = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(-1e3, 1e3, width=32))


def diff(reference, measured, **limits):
    """Return the differences of `measured` from `reference` under these limits."""
    comparison = compare([{"y": np.asarray(reference)}], [{"y": np.asarray(measured)}], Budget(Limits(**limits)))
    return comparison.outputs[0]


class TestFigures:
    """Metrics as their docstrings define them."""

    def test_relative_l2(self):
        """Relative L2 is the norm of the error over the norm of the reference."""
        assert 0.1 == pytest.approx(diff([3.0, 4.0], [3.0, 4.5]).relative_l2)

    def test_max_abs(self):
        """max_abs is the largest error of one element."""
        assert 0.5 == diff([3.0, 4.0], [3.25, 3.5]).max_abs

    def test_cosine_is_the_worst_row(self):
        """Cosine is the smallest similarity along the last axis."""
        assert 0.6 == pytest.approx(diff([[1.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [3.0, 4.0]]).cosine)

    def test_cosine_of_equal_rows_is_one(self):
        """Equal rows have a similarity of exactly 1."""
        rows = np.random.default_rng(0).standard_normal((100, 7))

        assert diff(rows, rows, cosine=1.0)
        assert 1.0 == diff(rows, rows).cosine

    @pytest.mark.parametrize(("measured", "cosine"), [([[0.0, 0.0]], 1.0), ([[1.0, 0.0]], 0.0)])
    def test_cosine_of_a_zero_row(self, measured, cosine):
        """A row of zeros is similar only to itself."""
        assert cosine == diff([[0.0, 0.0]], measured).cosine

    def test_top1(self):
        """Top-1 is the share of rows whose largest element is at the same index."""
        reference = [[1.0, 2.0], [2.0, 1.0], [0.0, 1.0], [5.0, 4.0]]

        assert 0.75 == diff(reference, [[1.0, 2.0], [2.0, 1.0], [1.0, 0.0], [5.0, 4.0]]).top1

    def test_no_top1_of_an_image(self):
        """The last axis of a segmentation map is its width; a budget may limit its top-1 all the same."""
        image = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)

        assert diff(image, image).top1 is None
        assert 1.0 == diff(image, image, top1=0.5).top1
        assert 1.0 == diff(image[0], image[0]).top1, "[batch, tokens, vocabulary]"

    @pytest.mark.parametrize("shape", [(), (3, 1), (0, 4)])
    def test_top1_needs_rows_of_scores(self, shape):
        """A scalar, a column and an empty table have no top-1."""
        assert diff(np.ones(shape), np.ones(shape)).top1 is None

    def test_empty_samples_do_not_count(self):
        """A sample without rows does not affect the top-1 of the others."""
        sets = [[{"y": np.ones((0, 0))}, {"y": np.eye(2)}], [{"y": np.ones((0, 0))}, {"y": np.eye(2)[::-1]}]]
        budget = Budget(Limits(top1=0.5))

        comparison = compare(*sets, budget)

        assert not comparison
        assert 0.0 == comparison.outputs[0].top1

    def test_only_empty_outputs(self):
        """Outputs that are always empty are within the budget, and reported as unmeasured."""
        comparison = compare([{"y": np.ones((0, 3))}], [{"y": np.ones((0, 3))}], Budget())

        assert comparison
        assert ["`y` is empty for every sample"] == comparison.unmeasured()

    def test_sqnr(self):
        """SQNR is ten times the decimal logarithm of signal over error."""
        assert 20.0 == pytest.approx(diff([10.0], [11.0]).sqnr_db)

    def test_sqnr_without_an_error(self):
        """Without an error SQNR is infinite."""
        assert math.inf == diff([10.0], [10.0]).sqnr_db

    def test_sqnr_without_a_signal(self):
        """An error with a zero reference has an SQNR of minus infinity."""
        assert -math.inf == diff([0.0], [1.0]).sqnr_db

    def test_zero_reference(self):
        """Zero for zero is no error; any other value is an infinite relative error."""
        assert 0.0 == diff([0.0, 0.0], [0.0, 0.0]).relative_l2
        assert math.inf == diff([0.0, 0.0], [0.0, 1e-9]).relative_l2

    def test_half_outputs_are_compared_in_double(self):
        """A float16 output whose square overflows in half is measured correctly."""
        assert 0.0 == diff(np.float32([60_000.0]), np.float16([60_000.0])).relative_l2

    def test_samples_are_pooled(self):
        """Errors of all samples are summed before the division; samples may differ in shape."""
        references = [{"y": np.array([3.0])}, {"y": np.array([4.0, 0.0])}]
        measured = [{"y": np.array([3.3])}, {"y": np.array([4.4, 0.0])}]
        comparison = compare(references, measured, Budget())

        assert 0.1 == pytest.approx(comparison.outputs[0].relative_l2)
        assert (2, 3) == (comparison.samples, comparison.outputs[0].elements)

    @given(floats)
    def test_equal_arrays_have_no_error(self, array):
        """Any array has no error against itself."""
        same = diff(array, array.copy(), relative_l2=0.0, max_abs=0.0, cosine=1.0, top1=1.0)

        assert same
        assert (0.0, 0.0, 1.0) == (same.relative_l2, same.max_abs, same.cosine)

    @given(floats, st.floats(1e-3, 1e3))
    def test_relative_l2_does_not_depend_on_scale(self, array, scale):
        """Relative L2 does not depend on the scale of both arrays."""
        array = array.astype(np.float64) + 1e4
        noisy = array + np.arange(array.size).reshape(array.shape)

        assert relative_l2(array, noisy) == pytest.approx(relative_l2(array * scale, noisy * scale))


class TestNonFinite:
    """NaN and infinity."""

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_same_value_is_right(self, value):
        """A mask's -inf, or a NaN that FP32 returns as well, is not an error."""
        same = diff([1.0, value], [1.0, value])

        assert same
        assert (0, 0.0, 0.0) == (same.non_finite, same.relative_l2, same.max_abs)

    @pytest.mark.parametrize(
        ("reference", "measured"),
        [(1.0, np.nan), (1.0, np.inf), (np.inf, 1.0), (np.nan, 1.0), (np.inf, -np.inf), (np.inf, np.nan)],
    )
    def test_other_non_finite_values_are_errors(self, reference, measured):
        """Any other non-finite value is over every budget and is counted."""
        wrong = diff([1.0, reference], [1.0, measured])

        assert not wrong
        assert 1 == wrong.non_finite
        assert (math.inf, math.inf) == (wrong.relative_l2, wrong.max_abs)
        assert wrong.exceeded[0] == "1 of 2 elements are NaN or infinite where FP32 is not"

    def test_worst_output_is_the_one_that_is_not_finite(self):
        """An infinity is worse than any finite error."""
        references = [{"a": np.array([0.0]), "b": np.array([1.0]), "c": np.array([1.0])}]
        measured = [{"a": np.array([1.0]), "b": np.array([np.inf]), "c": np.array([1.0])}]

        assert "b" == compare(references, measured, Budget()).worst.output


class TestOtherTypes:
    """Outputs of other types than float."""

    @pytest.mark.parametrize(
        ("reference", "measured"), [([1, 2, 3], [1, 2, 4]), ([True, False], [True, True]), (["a", "b"], ["a", "c"])]
    )
    def test_difference_is_over_budget(self, reference, measured):
        """Integers, booleans and strings must be equal; differing elements are counted."""
        wrong = diff(reference, measured)

        assert not wrong
        assert 1 == wrong.mismatched
        assert math.inf == wrong.relative_l2
        assert "elements differ" in wrong.exceeded[0]

    @pytest.mark.parametrize("array", [[1, 2], [True], ["a"]])
    def test_equal_is_within_every_budget(self, array):
        """Equal outputs pass any limits."""
        assert diff(array, array, relative_l2=0.0, cosine=1.0, top1=1.0)

    def test_objects_and_fixed_width_strings_are_equal(self):
        """Golden strings of fixed width equal the runtime's string objects."""
        assert diff(np.array(["a"]), np.array(["a"], object))

    @pytest.mark.parametrize("dtype", [np.float32, np.int64])
    def test_another_shape_is_over_budget(self, dtype):
        """Outputs of another shape are over the budget and not compared further."""
        wrong = diff(np.zeros((2, 3), dtype), np.zeros((3, 2), dtype))

        assert not wrong
        assert "6 of 6 elements differ or have another shape" == wrong.exceeded[0]


class TestVerdict:
    """Verdicts on limits."""

    @pytest.mark.parametrize(
        ("limits", "text"),
        [
            ({"relative_l2": 0.05}, "relative_l2 is 0.1, the budget is at most 0.05"),
            ({"max_abs": 0.4}, "max_abs is 0.5, the budget is at most 0.4"),
            ({"cosine": 0.9999}, "cosine is 0.998, the budget is at least 0.9999"),
            ({"top1": 1.0}, "top1 is 0, the budget is at least 1"),
        ],
    )
    def test_exceeded_limit(self, limits, text):
        """Every metric can fail, and the text has its value and limit."""
        measured = [[4.5, 3.0]] if "top1" not in limits else [[3.0, 4.0]]
        wrong = diff([[4.0, 3.0]], measured, **limits)

        assert (text,) == wrong.exceeded
        assert not wrong

    @pytest.mark.parametrize("limits", [{"relative_l2": 0.11}, {"max_abs": 0.5}, {"cosine": 0.99}, {"top1": 1.0}])
    def test_limit_met_exactly(self, limits):
        """Every metric passes at its limit exactly."""
        assert diff([[4.0, 3.0]], [[4.5, 3.0]], **limits)

    def test_no_limit(self):
        """Without limits any finite output passes."""
        assert diff([1.0], [100.0])

    def test_one_output_suffices_to_fail(self):
        """A comparison is truthy if all outputs are; failures name the output."""
        references = [{"a": np.array([1.0]), "b": np.array([1.0])}]
        measured = [{"a": np.array([1.0]), "b": np.array([2.0])}]
        comparison = compare(references, measured, Budget())

        assert not comparison
        assert ["`b`: relative_l2 is 1, the budget is at most 0.01"] == comparison.failures()

    def test_output_with_limits_of_its_own(self):
        """Limits for one output replace the default only for it."""
        references = [{"a": np.array([1.0]), "b": np.array([1.0])}]
        measured = [{"a": np.array([1.5]), "b": np.array([1.0])}]

        assert compare(references, measured, Budget(outputs={"a": Limits(max_abs=1.0)}))


class TestUnmeasured:
    """Elements that are not finite in FP32 itself."""

    def test_unmeasured_elements_are_counted(self):
        """NaN for NaN and infinity for infinity are neither errors nor evidence: they are counted."""
        wanted = np.float32([np.nan, np.inf, 1.0])
        comparison = compare([{"y": wanted}], [{"y": wanted}], Budget())

        assert comparison
        assert 2 == comparison.outputs[0].unmeasured
        assert ["`y`: 2 of 3 elements are NaN or infinite in FP32 itself"] == comparison.unmeasured()

    def test_half_alone_is_an_error(self):
        """If only half is not finite, only that is reported."""
        only_half = diff([1.0, 2.0], [np.nan, 2.0])

        assert (0, 1) == (only_half.unmeasured, only_half.non_finite)

    def test_finite_outputs_are_fully_measured(self):
        """Without unmeasured elements nothing is reported."""
        assert [] == compare([{"y": np.ones(3)}], [{"y": np.ones(3)}], Budget()).unmeasured()


class TestDetectors:
    """Outputs of a detector are compared box by box."""

    BUDGET = Budget().with_detectors([Detector("boxes", "scores", "labels", "num")])
    CAT, DOG = ([0, 0, 10, 10], 0.9, 1), ([20, 20, 30, 30], 0.8, 2)

    def answer(self, *boxes):
        """Return an answer with these boxes."""
        return {
            "boxes": np.float32([box for box, _, _ in boxes]).reshape(-1, 4),
            "scores": np.float32([score for _, score, _ in boxes]),
            "labels": np.int64([label for _, _, label in boxes]),
            "num": np.int64([len(boxes)]),
        }

    def diffs(self, want, got):
        """Return the differences by output."""
        return {diff.output: diff for diff in compare([want], [got], self.BUDGET).outputs}

    def test_another_order_is_no_error(self):
        """Boxes, scores and classes in another order are the same answer."""
        found = self.diffs(self.answer(self.CAT, self.DOG), self.answer(self.DOG, self.CAT))

        assert [0.0] * 4 == [diff.relative_l2 for diff in found.values()]
        assert (0.0, 2) == (found["boxes"].boxes, found["boxes"].found)

    def test_scores_are_compared_where_both_have_the_box(self):
        """The error of scores is computed over boxes that both answers have."""
        close = (self.CAT[0], 0.99, 1)

        assert 0.1 == pytest.approx(self.diffs(self.answer(self.CAT), self.answer(close))["scores"].relative_l2)

    def test_missing_box_is_named(self):
        """A missing box is over the budget, and its score is in the text."""
        comparison = compare([self.answer(self.CAT, self.DOG)], [self.answer(self.CAT)], self.BUDGET)

        assert [
            "`boxes`: boxes is 0.5, the budget is at most 0.01: 1 of 2 boxes changed: class 2 vanishes at score 0.8"
        ] == comparison.failures()

    def test_nan_is_never_within(self):
        """A NaN score is an error, whether or not its box is matched."""
        broken = self.answer(self.CAT)
        broken["scores"] = np.float32([np.nan])

        assert 1 == self.diffs(self.answer(self.CAT), broken)["scores"].non_finite

    def test_no_boxes_are_unmeasured(self):
        """Without boxes in FP32, the boxes are reported as unmeasured."""
        comparison = compare([self.answer()], [self.answer()], self.BUDGET)

        assert comparison
        assert ["`boxes` holds no box whose score counts"] == comparison.unmeasured()


class TestIntegers:
    """Integers must be equal, unless the budget allows a share or a number of steps."""

    def test_equal(self):
        """One differing element is an infinite error."""
        assert math.inf == diff([1, 2], [1, 3]).relative_l2

    def test_a_share_may_differ(self):
        """Choices must agree up to their limit."""
        assert diff([1, 2, 3, 4], [1, 2, 3, 9], agree=0.75)
        assert ("agree is 0.5, the budget is at least 0.75",) == diff([1, 2, 3, 4], [1, 2, 8, 9], agree=0.75).exceeded

    def test_another_shape_never_agrees(self):
        """Outputs of another shape do not agree at any share."""
        assert not diff([1, 2], [1], agree=0.5)

    def test_steps(self):
        """Quantized numbers may be a step off, and have a relative L2."""
        found = diff([30, 40], [30, 41], steps=1)

        assert found
        assert 0.02 == pytest.approx(found.relative_l2)
        assert ("steps is 2, the budget is at most 1",) == diff([30, 40], [30, 42], steps=1).exceeded

    def test_booleans_have_no_steps(self):
        """Booleans cannot have a limit in steps."""
        assert not diff([True, False], [True, True], steps=1)


ELEMENTS = st.one_of(st.floats(-10, 10, width=32), st.sampled_from([np.nan, np.inf, -np.inf, 0.0]))
SAMPLES = st.lists(
    st.tuples(
        hnp.arrays(np.float32, (2, 3), elements=ELEMENTS), hnp.arrays(np.float32, (2, 3), elements=ELEMENTS),
        hnp.arrays(np.int64, (4,), elements=st.integers(0, 3)), hnp.arrays(np.int64, (4,), elements=st.integers(0, 3)),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


@given(SAMPLES)
def test_comparisons_of_single_samples_merge_into_that_of_all(samples):
    budget = Budget(outputs={"choice": Limits(steps=1)})
    wants = [{"scores": scores, "choice": choice} for scores, _, choice, _ in samples]
    gots = [{"scores": scores, "choice": choice} for _, scores, _, choice in samples]
    merged = Comparer(budget)
    for want, got in zip(wants, gots, strict=True):
        one = Comparer(budget)
        one.add(want, got)
        merged.merge(one)

    whole, parts = compare(wants, gots, budget), merged.result()

    assert whole.samples == parts.samples
    for a, b in zip(whole.outputs, parts.outputs, strict=True):
        for name in ("relative_l2", "max_abs", "cosine", "top1", "non_finite", "unmeasured", "agree", "steps"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), nan_ok=True), name


@given(hnp.arrays(np.float32, (3, 4), elements=ELEMENTS), hnp.arrays(np.float32, (3, 4), elements=ELEMENTS))
def test_the_metrics_are_those_of_their_definitions(want, got):
    diff = compare([{"y": want}], [{"y": got}], Budget()).outputs[0]

    finite = np.isfinite(want) & np.isfinite(got)
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    y, z = (np.where(finite, each, 0).astype(np.float64) for each in (want, got))
    assert int((~finite & ~same).sum()) == diff.non_finite
    assert int((~finite & same).sum()) == diff.unmeasured
    if not diff.non_finite:
        assert np.abs(z - y).max() == diff.max_abs
        if np.linalg.norm(y):
            assert np.linalg.norm(z - y) / np.linalg.norm(y) == pytest.approx(diff.relative_l2)
