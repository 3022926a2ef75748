"""Triton's raw binary request: the body contains only the bytes of the single input; its shape follows from their number."""

from __future__ import annotations

import math

import numpy as np

from demi.processing.prepared import RawRows
from demi.server.errors import RequestError
from demi.server.protocol.binary_tensors import decode_text, read_binary
from demi.server.protocol.request import InferRequest, OutputRequest
from demi.server.protocol.signature import Signature
from demi.tensors import Array, DType, TensorSpec, check_feeds

_HINT = "send a JSON header and its length before the tensors"


def read_raw(body: bytes, signature: Signature) -> InferRequest:
    """Read a body without JSON: one input; all outputs are requested as binary.

    Raises RequestError if the model has several inputs, or if the shape does not follow from the size.
    """
    if len(signature.inputs) != 1:
        raise RequestError(
            f"a raw request needs a model with one input, but this one has {len(signature.inputs)}", hint=_HINT
        )
    spec = signature.inputs[0]
    if spec.dtype is DType.BYTES:
        array = _read_string(body, spec)
    else:
        shape = raw_shape(spec, len(body), is_rows=signature.has_rows)
        signature.check_input_shape(spec, shape)
        array = read_binary(memoryview(body), spec.dtype, shape, spec.name)
    outputs = tuple(OutputRequest(output.name, binary=True) for output in signature.outputs)
    return InferRequest(check_feeds(signature.inputs, {spec.name: array}), outputs)


def looks_like_json(body: bytes) -> bool:
    """Return whether a body starts as JSON does; no image or sound file does."""
    return body[:64].lstrip(b" \t\r\n")[:1] in (b"{", b"")


def read_file(body: bytes, signature: Signature) -> InferRequest:
    """Read a body that is one image or sound, as `curl --data-binary @cat.jpg` sends it; the answer is JSON."""
    outputs = tuple(OutputRequest(spec.name, binary=False) for spec in signature.answers or signature.outputs)
    return InferRequest({}, outputs, raw=RawRows((body,)))


def raw_shape(spec: TensorSpec, size: int, *, is_rows: bool) -> tuple[int, ...]:
    """Return the shape of an input of `size` bytes; the length of one free axis follows from them.

    If an axis besides the rows is free, there is one row, as in Triton. Raises RequestError if more axes are free, or if
    the bytes do not fill a shape.
    """
    dims = list(spec.wire_shape)
    if is_rows and dims.count(-1) == 2:
        dims[0] = 1
    if dims.count(-1) > 1:
        raise RequestError(f"a raw request does not determine the shape of input `{spec}`", hint=_HINT)
    if -1 in dims:
        at = dims.index(-1)
        unit = math.prod(dims[:at] + dims[at + 1 :]) * spec.dtype.numpy.itemsize
        if not unit or size % unit:
            raise RequestError(
                f"a raw request for input `{spec}` needs a multiple of {unit} bytes, but has {size}", hint=_HINT
            )
        dims[at] = size // unit
    return tuple(dims)


def _read_string(body: bytes, spec: TensorSpec) -> Array:
    """Read a raw BYTES tensor: one element, without a length before it."""
    shape = [1 if dim == -1 else dim for dim in spec.wire_shape]
    if math.prod(shape) != 1:
        raise RequestError(f"a raw request contains one BYTES element, but input `{spec}` needs more")
    result = np.empty(1, np.object_)
    result[0] = decode_text(memoryview(body), spec.name)
    return result.reshape(shape)
