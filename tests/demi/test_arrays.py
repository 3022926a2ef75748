"""Arrays from any container of numbers, and from the representations of bfloat16."""

import ml_dtypes
import numpy as np
import pytest

from demi.arrays import as_array

NUMBERS = np.array([[1.0, -2.5], [3.0e38, 0.0]], np.float32).astype(ml_dtypes.bfloat16)


class Tensor:
    """Stands for a bfloat16 tensor of PyTorch, which NumPy cannot read."""

    dtype = "torch.bfloat16"

    def float(self):
        """Return the same numbers in FP32."""
        return NUMBERS.astype(np.float32)

    def __array__(self, *_, **__):
        raise TypeError("Got unsupported ScalarType BFloat16")


@pytest.mark.parametrize("value", [NUMBERS, NUMBERS.view("V2"), Tensor()], ids=["ml_dtypes", "from an npz", "torch"])
def test_bfloat16_is_float32(value):
    """bfloat16 becomes float32 with the same values."""
    array = as_array(value)

    assert np.float32 == array.dtype
    np.testing.assert_array_equal(NUMBERS.astype(np.float32), array)


def test_a_scalar_of_bfloat16():
    """A scalar stays a scalar."""
    assert () == as_array(NUMBERS[0, 0]).shape
    assert -2.5 == as_array(NUMBERS[0, 1])


@pytest.mark.parametrize("value", [[1.5, 2], np.arange(3, dtype=np.uint16), 7, np.array(["a"])])
def test_other_arrays(value):
    """Lists, 16-bit integers, numbers and texts are converted as by NumPy."""
    assert np.asarray(value).dtype == as_array(value).dtype
    np.testing.assert_array_equal(np.asarray(value), as_array(value))
