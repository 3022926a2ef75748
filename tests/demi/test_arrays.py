"""Arrays: whatever people hold their numbers in, and bfloat16 in each of its guises."""

import ml_dtypes
import numpy as np
import pytest

from demi.arrays import as_array

NUMBERS = np.array([[1.0, -2.5], [3.0e38, 0.0]], np.float32).astype(ml_dtypes.bfloat16)


class Tensor:
    """Stands for a tensor of PyTorch in bfloat16, which NumPy cannot read."""

    dtype = "torch.bfloat16"

    def float(self):
        """The same numbers in FP32."""
        return NUMBERS.astype(np.float32)

    def __array__(self, *_, **__):
        raise TypeError("Got unsupported ScalarType BFloat16")


@pytest.mark.parametrize("value", [NUMBERS, NUMBERS.view("V2"), Tensor()], ids=["ml_dtypes", "from an npz", "torch"])
def test_bfloat16_is_float32(value):
    """Every number is the same one."""
    array = as_array(value)

    assert np.float32 == array.dtype
    np.testing.assert_array_equal(NUMBERS.astype(np.float32), array)


def test_a_scalar_of_bfloat16():
    """Nothing becomes an array of one."""
    assert () == as_array(NUMBERS[0, 0]).shape
    assert -2.5 == as_array(NUMBERS[0, 1])


@pytest.mark.parametrize("value", [[1.5, 2], np.arange(3, dtype=np.uint16), 7, np.array(["a"])])
def test_others_are_what_numpy_makes_of_them(value):
    """Lists, plain integers of 16 bits, numbers and texts."""
    assert np.asarray(value).dtype == as_array(value).dtype
    np.testing.assert_array_equal(np.asarray(value), as_array(value))
