"""An infer request from its bytes, and the bytes of its answer: pure functions, and the end of all doubt.

Past `read_request` every tensor has the name, datatype and shape that the model declares. A request is JSON, or JSON
followed by tensors as bytes, or nothing but the bytes of one tensor; `protocol.md` has the details.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import orjson

from demi.tensors import Array, DType, Feeds, TensorSpec, check_feeds
from server.answers import Answer, Wish
from server.binary_tensors import decode_text, read_binary, write_binary
from server.classification import classify
from server.errors import RequestError
from server.floats import as_declared
from server.json_tensors import read_json, write_json
from server.message import read_length, read_message
from server.parameters import read_parameters, read_wish, switch, whole_number
from server.schemas import InferInput, InferOutput, Parameter
from server.settings import NonFinite
from server.signature import Signature

_DTYPES = {dtype.value: dtype for dtype in DType}
_LARGEST = 2**48
"""More elements than any tensor here has: beyond it not even an empty array can be shaped."""


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """One output someone asked for: as binary or JSON, as it is (`classes` 0) or as its largest elements."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A checked infer request. `timeout_us` is None where the caller did not say, and `wish` the precision asked for."""

    feeds: Feeds
    outputs: tuple[OutputRequest, ...]
    id: str = ""
    timeout_us: int | None = None
    wish: Wish = "auto"

    @property
    def output_names(self) -> list[str]:
        """The outputs to compute."""
        return [output.name for output in self.outputs]


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The body of an answer; `header_length` is that of its JSON where tensors follow as bytes, else None."""

    body: bytes
    header_length: int | None


def read_request(body: bytes, header_length: str | None, signature: Signature) -> InferRequest:
    """The request in a body, by the value of its `Inference-Header-Content-Length` header (None where it has none).

    Raises RequestError or TensorError, naming the tensor wherever one is to blame.
    """
    length = read_length(header_length, len(body))
    if header_length is not None and length == 0:
        return _read_raw(body, signature)
    message = read_message(body[:length])
    parameters = read_parameters(message.parameters, "the request")
    return InferRequest(
        feeds=_read_inputs(message.inputs, memoryview(body)[length:], signature),
        outputs=_read_outputs(message.outputs, parameters, signature),
        id=message.id or "",
        timeout_us=whole_number(parameters, "timeout", "the request"),
        wish=read_wish(parameters),
    )


def write_answer(
    model: str,
    version: str,
    request: InferRequest,
    answer: Answer,
    signature: Signature,
    non_finite: NonFinite,
) -> InferAnswer:
    """The answer with the outputs that the request asked for, each in the form it asked for.

    Raises RequestError where JSON cannot write a value that must be written.
    """
    entries: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for wanted in request.outputs:
        spec, array = _shown(wanted, answer.outputs[wanted.name], signature)
        entry: dict[str, Any] = {"name": spec.name, "datatype": spec.dtype.value, "shape": list(array.shape)}
        if wanted.binary:
            tail.append(write_binary(array, spec.dtype))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            # No `parameters` here: the C++ client takes them for a promise of binary data.
            entry["data"] = write_json(array, spec.dtype, spec.name, refuse_non_finite=non_finite == "error")
        entries.append(entry)
    head: dict[str, Any] = {
        "model_name": model,
        "model_version": version,
        "parameters": {"precision": answer.precision},
        "outputs": entries,
    }
    if request.id:
        head["id"] = request.id
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(wanted.binary for wanted in request.outputs):
        return InferAnswer(text, None)
    return InferAnswer(b"".join([text, *tail]), len(text))


def _read_inputs(inputs: list[InferInput], tail: memoryview, signature: Signature) -> Feeds:
    feeds: Feeds = {}
    at = 0
    for given in inputs:
        spec = signature.input(given.name)
        if given.name in feeds:
            raise RequestError(f"input `{given.name}` is given twice")
        dtype = _read_dtype(given)
        shape = _read_shape(given)
        signature.check_input_shape(spec, shape)
        size = _binary_size(given)
        if size is None:
            array = read_json(given.data, dtype, shape, given.name)
        elif size > len(tail) - at:
            raise RequestError(f"input `{given.name}` should have {size} bytes, but {len(tail) - at} are there")
        else:
            array = read_binary(tail[at : at + size], dtype, shape, given.name)
            at += size
        feeds[given.name] = as_declared(array, dtype, spec)
    if at != len(tail):
        raise RequestError(f"{len(tail) - at} bytes are left over after the inputs")
    return check_feeds(signature.inputs, feeds)


def _read_dtype(given: InferInput) -> DType:
    dtype = _DTYPES.get(given.datatype) if isinstance(given.datatype, str) else None
    if dtype is None:
        raise RequestError(
            f"input `{given.name}` has an unknown or missing datatype", hint="use one of " + ", ".join(_DTYPES)
        )
    return dtype


def _read_shape(given: InferInput) -> tuple[int, ...]:
    shape = given.shape
    if not isinstance(shape, list) or any(type(dim) is not int or dim < 0 for dim in shape):
        raise RequestError(f"input `{given.name}` needs a shape: a list of whole numbers, zero or more")
    if math.prod(max(dim, 1) for dim in shape) > _LARGEST:
        raise RequestError(f"the shape of input `{given.name}` is too large")
    return tuple(shape)


def _binary_size(given: InferInput) -> int | None:
    owner = f"input `{given.name}`"
    size = whole_number(read_parameters(given.parameters, owner), "binary_data_size", owner)
    if (size is None) == (given.data is msgspec.UNSET):
        both = "both data and" if size is not None else "neither data nor"
        raise RequestError(f"{owner} has {both} binary_data_size", hint="give one of them")
    return size


def _read_outputs(
    outputs: list[InferOutput] | None, parameters: dict[str, Parameter], signature: Signature
) -> tuple[OutputRequest, ...]:
    binary = switch(parameters, "binary_data_output", "the request", False)
    if not outputs:
        return tuple(OutputRequest(spec.name, binary) for spec in signature.outputs)
    wanted = [_read_output(output, binary, signature) for output in outputs]
    names = [output.name for output in wanted]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"output `{twice}` is asked for twice")
    return tuple(wanted)


def _read_output(output: InferOutput, binary: bool, signature: Signature) -> OutputRequest:
    owner = f"output `{output.name}`"
    signature.output(output.name)
    parameters = read_parameters(output.parameters, owner)
    classes = whole_number(parameters, "classification", owner) or 0
    return OutputRequest(output.name, switch(parameters, "binary_data", owner, binary), classes)


def _read_raw(body: bytes, signature: Signature) -> InferRequest:
    """The raw form: one input, the whole body its bytes, one row, and every output binary."""
    if len(signature.inputs) != 1:
        raise RequestError(
            f"a raw request needs a model with one input, this one has {len(signature.inputs)}",
            hint="send the JSON header and its length",
        )
    spec = signature.inputs[0]
    shape = _raw_shape(spec, signature)
    data = memoryview(body)
    if spec.dtype is DType.BYTES:
        array = _raw_string(data, shape, spec)
    else:
        array = read_binary(data, spec.dtype, shape, spec.name)
    outputs = tuple(OutputRequest(output.name, binary=True) for output in signature.outputs)
    return InferRequest(check_feeds(signature.inputs, {spec.name: array}), outputs)


def _raw_shape(spec: TensorSpec, signature: Signature) -> tuple[int, ...]:
    dims = ([1] if signature.batch.free else []) + signature.dims(spec)
    if -1 in dims:
        raise RequestError(
            f"a raw request cannot tell the shape of input `{spec}`", hint="send the JSON header and its length"
        )
    return tuple(dims)


def _raw_string(data: memoryview, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """A raw BYTES tensor is one element without its length in front."""
    if math.prod(shape) != 1:
        raise RequestError(f"a raw request holds one element of BYTES, but input `{spec}` takes more")
    result = np.empty(1, np.object_)
    result[0] = decode_text(data, spec.name)
    return result.reshape(shape)


def _shown(wanted: OutputRequest, values: Array, signature: Signature) -> tuple[TensorSpec, Array]:
    spec = signature.output(wanted.name)
    if not wanted.classes:
        return spec, values
    labels = classify(values, spec, wanted.classes, rows=signature.batch.free)
    return TensorSpec(spec.name, DType.BYTES, labels.shape), labels
