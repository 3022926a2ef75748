"""Arrays from whatever people hold their numbers in: NumPy, lists, tensors, and bfloat16 in any of its guises.

NumPy has no bfloat16. It comes as an array of ml_dtypes, as a tensor of PyTorch, and out of an `.npz` as elements of two
nameless bytes. Each becomes float32, which holds all of its numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from demi.float16 import BF16, from_half
from demi.tensors import Array

NAMELESS = np.dtype("V2")
"""What NumPy writes for an element of ml_dtypes' bfloat16."""


def as_array(value: Any) -> Array:
    """The array that `value` holds; bfloat16 becomes float32, element by element the same.

    Raises what NumPy raises (ValueError, TypeError, RuntimeError) for what is no array.
    """
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # by its name: nothing here imports PyTorch
        value = value.float()
    array = np.asarray(value)
    if array.dtype.name == "bfloat16" or array.dtype == NAMELESS:
        return from_half(np.ascontiguousarray(array).view(np.uint16).reshape(array.shape), BF16)
    return array
