"""Convert array-likes to NumPy: lists, tensors, and bfloat16 in all of its forms.

NumPy has no bfloat16. It comes as an ml_dtypes array, as a PyTorch tensor, and from an `.npz` file as elements of two
untyped bytes. All become float32, which holds every bfloat16 value exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from demi.float16 import BF16, from_half
from demi.tensors import Array

NAMELESS = np.dtype("V2")
"""The dtype that NumPy writes for ml_dtypes' bfloat16."""


def as_array(value: Any) -> Array:
    """Return `value` as an array; bfloat16 becomes float32 with the same values.

    Raises what NumPy raises (ValueError, TypeError, RuntimeError) for a value that is not an array.
    """
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # compared by name, since PyTorch is not imported here
        value = value.float()
    array = np.asarray(value)
    if array.dtype.name == "bfloat16" or array.dtype == NAMELESS:
        return from_half(np.ascontiguousarray(array).view(np.uint16).reshape(array.shape), BF16)
    return array
