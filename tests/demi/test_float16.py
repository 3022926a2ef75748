"""Half types: rounding equals NumPy's and ml_dtypes' bit for bit, and losses are counted."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis.extra import numpy as hnp

from demi.errors import InputError
from demi.float16 import BF16, FP16, half_format, half_loss, round_through, to_half

TYPES = {FP16: np.float16, BF16: ml_dtypes.bfloat16}

any_bits = hnp.arrays(np.uint32, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=8)).map(
    lambda bits: bits.view(np.float32)
)
"""Float32 arrays of any bit pattern: NaNs, infinities, subnormals, and 0-d arrays among them."""

formats = pytest.mark.parametrize("fmt", [FP16, BF16], ids=lambda fmt: fmt.name)


def bits(values):
    return np.asarray(values).view(np.uint16)


@formats
@given(values=any_bits)
@example(values=np.array([65519.996, 65520.0, 2.0**-25, np.nextafter(2.0**-25, 1, dtype=np.float32)], np.float32))
@example(values=np.array(0xFFFFFFFF, np.uint32).view(np.float32))
@example(values=np.array([3.3961775e38, 3.4028235e38, -0.0, 1e-45], np.float32))
def test_rounding_equals_the_real_type(fmt, values):
    """Every finite or infinite float32 rounds to the bits of NumPy (FP16) and ml_dtypes (BF16)."""
    with np.errstate(all="ignore"):
        expected = np.asarray(values.astype(TYPES[fmt]))
    numbers = ~np.isnan(values)

    np.testing.assert_array_equal(bits(expected)[numbers], bits(to_half(values, fmt))[numbers])


@formats
@given(values=any_bits)
@example(values=np.array([0x7F800001, 0xFF80FFFF, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32))
def test_nan_stays_nan_with_its_sign(fmt, values):
    """A NaN stays NaN with its sign, whatever its payload."""
    rounded = round_through(values, fmt)

    np.testing.assert_array_equal(np.isnan(values), np.isnan(rounded))
    np.testing.assert_array_equal(np.signbit(values), np.signbit(rounded))


@formats
@given(values=any_bits)
def test_rounding_is_idempotent(fmt, values):
    """Values that half represents are not changed by rounding."""
    once = round_through(values, fmt)

    np.testing.assert_array_equal(once, round_through(once, fmt))


@formats
@given(values=any_bits)
def test_result_is_a_float32_array_of_the_same_shape(fmt, values):
    """The result of a 0-d array is an array."""
    rounded = round_through(values, fmt)

    assert isinstance(rounded, np.ndarray)
    assert (np.float32, values.shape) == (rounded.dtype, rounded.shape)


@formats
def test_slices_round_as_whole_arrays_do(fmt):
    """A non-contiguous array is rounded like a contiguous one."""
    whole = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)

    np.testing.assert_array_equal(round_through(whole, fmt)[::2, ::-1], round_through(whole[::2, ::-1], fmt))


@formats
def test_limits_are_those_of_the_type(fmt):
    """Largest, smallest and spacing equal those of the real type."""
    info = ml_dtypes.finfo(TYPES[fmt])

    assert float(info.max) == fmt.max
    assert float(info.smallest_normal) == fmt.smallest_normal
    assert float(info.smallest_subnormal) == fmt.smallest_subnormal
    assert float(info.eps) == fmt.epsilon


@formats
def test_integers_are_exact_to_the_stated_limit(fmt):
    """Every integer up to the limit is exact; the next one is not."""
    integers = np.arange(fmt.exact_integers + 1, dtype=np.float32)

    np.testing.assert_array_equal(integers, round_through(integers, fmt))
    assert fmt.exact_integers + 1 != round_through(np.float32(fmt.exact_integers + 1), fmt)


@pytest.mark.parametrize("fmt", [FP16, BF16])
def test_format_by_name(fmt):
    """A format is found by its name on the command line."""
    assert fmt is half_format(fmt.name)


def test_unknown_format_is_an_error():
    """The error of an unknown format quotes it and lists the known ones."""
    with pytest.raises(InputError, match="`fp8`") as caught:
        half_format("fp8")
    assert "fp16 or bf16" in caught.value.hint


class TestHalfLoss:
    """Losses of an array in half."""

    def test_nothing(self):
        """An array without a loss is falsy."""
        assert not half_loss(np.array([0.0, 1.0, -65504.0]), FP16)

    def test_overflow(self):
        """A finite value beyond the range counts; an infinity does not."""
        loss = half_loss(np.array([1e5, -1e5, np.inf, np.nan, 65519.0], np.float32), FP16)

        assert (2, 0) == (loss.overflowed, loss.vanished)
        assert 1e5 == loss.largest
        assert loss

    def test_vanishing(self):
        """A non-zero value that becomes zero counts; a zero does not."""
        loss = half_loss(np.array([1e-12, -1e-12, 0.0, 6e-8]), FP16)

        assert (0, 2) == (loss.overflowed, loss.vanished)
        assert loss

    def test_subnormal(self):
        """A subnormal value has fewer digits, which does not count as a loss."""
        loss = half_loss(np.array([1e-5, 1.0]), FP16)

        assert 1 == loss.subnormal
        assert not loss

    def test_bf16_holds_what_fp16_does_not(self):
        """BF16 has float32's range."""
        assert not half_loss(np.array([1e5, 1e-12]), BF16)

    @formats
    def test_scalar(self, fmt):
        """A 0-d array is supported."""
        assert 3.0 == half_loss(np.array(-3.0, np.float32), fmt).largest

    @formats
    def test_empty(self, fmt):
        """An empty array loses nothing, and its largest magnitude is 0."""
        assert 0.0 == half_loss(np.zeros((0, 2)), fmt).largest

    @formats
    @given(values=any_bits)
    def test_counts_agree_with_the_rounded_array(self, fmt, values):
        """Counts equal those of the rounded array, element by element."""
        rounded, loss = round_through(values, fmt), half_loss(values, fmt)

        assert np.sum(np.isfinite(values) & np.isinf(rounded)) == loss.overflowed
        assert np.sum((values != 0) & np.isfinite(values) & (rounded == 0)) == loss.vanished
