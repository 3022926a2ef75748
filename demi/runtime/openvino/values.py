"""Arrays on their way into OpenVINO and back: which types it computes exactly, and bfloat16 as its bits in uint16."""

from __future__ import annotations

from typing import Any

import numpy as np

from demi.errors import SourceError, TensorError
from demi.tensors import Array, DType, TensorSpec

ELEMENTS = {
    "boolean": DType.BOOL,
    "u8": DType.UINT8,
    "i8": DType.INT8,
    "i16": DType.INT16,
    "i32": DType.INT32,
    "i64": DType.INT64,
    "f16": DType.FP16,
    "bf16": DType.BF16,
    "f32": DType.FP32,
}
"""OpenVINO's names of the element types that its CPU plugin computes as they are; INT64 in 32 bits, which `check_integers`
holds inputs to."""

REFUSED = {
    "string": "strings: its Python interface has ended the process over them",
    "f64": "FP64, which its CPU plugin computes in FP32",
    "u64": "UINT64, which its CPU plugin computes in 32 bits",
    "u32": "UINT32, which its CPU plugin computes as INT32",
    "u16": "UINT16, which its CPU plugin computes as INT32",
}
"""The other types, each with the reason why a model with such an input or output is left to ONNX Runtime."""

LARGEST = int(np.iinfo(np.int32).max)
"""Largest magnitude of an integer input in any model: OpenVINO holds INT64 in 32 bits."""


def dtype_of(name: str, element: str) -> DType:
    """The dtype of an input or output called `name`; SourceError for a type that is refused, with the reason."""
    if element in ELEMENTS:
        return ELEMENTS[element]
    raise SourceError(
        f"`{name}` holds {REFUSED.get(element, f'elements of type {element}, which are not known here')}",
        hint="run this model with --runtime onnxruntime",
    )


def check_integers(spec: TensorSpec, array: Array, limit: int = LARGEST) -> None:
    """Raise TensorError for an integer input beyond the limit of this model (`demi.runtime.openvino.integers`).

    OpenVINO would cut off what needs more than 32 bits (2**40 becomes 0), and compute with less in FP32.
    """
    if spec.dtype not in (DType.INT64, DType.INT32) or not array.size:
        return
    low, high = int(array.min()), int(array.max())
    if max(-low, high) > limit:
        raise TensorError(
            f"input `{spec.name}` holds {high if high > limit else low}, and OpenVINO computes with this model's integers "
            f"exactly up to {limit} only",
            hint="serve the model with --runtime onnxruntime",
        )


def to_tensor(ov: Any, spec: TensorSpec, array: Array) -> Any:
    """A tensor of OpenVINO's over the memory of an array, which must live as long; copied where it is in pieces or read-only."""
    ready = np.require(array, requirements=["C", "W"])
    if spec.dtype is DType.BF16:
        return ov.Tensor(ready, list(ready.shape), ov.Type.bf16)
    return ov.Tensor(ready, shared_memory=True)


def to_array(spec: TensorSpec, tensor: Any) -> Array:
    """A copy of a tensor's elements: the tensor belongs to a request, which is used again."""
    held: Array = tensor.data  # which shows bfloat16's bits as if they were float16
    return np.array(held.view(np.uint16) if spec.dtype is DType.BF16 else held)
