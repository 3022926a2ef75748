"""Parse gRPC infer requests and encode answers: the counterpart of `server/protocol/body.py` for HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from demi.server.errors import RequestError
from demi.server.grpc.inference import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer
from demi.server.protocol.binary_tensors import decode_text, read_binary, write_binary
from demi.server.protocol.json_tensors import read_json
from demi.server.protocol.parameters import read_bool, read_count, read_parameters, read_precision
from demi.server.protocol.request import InferRequest, ReadData, raw_rows, read_inputs, read_outputs, render_output
from demi.server.protocol.schemas import InferInput, InferOutput, Parameter
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.protocol.signature import Signature
from demi.tensors import Array, DType

_FIELDS = {
    DType.BOOL: "bool_contents",
    DType.UINT8: "uint_contents",
    DType.UINT16: "uint_contents",
    DType.UINT32: "uint_contents",
    DType.UINT64: "uint64_contents",
    DType.INT8: "int_contents",
    DType.INT16: "int_contents",
    DType.INT32: "int_contents",
    DType.INT64: "int64_contents",
    DType.FP32: "fp32_contents",
    DType.FP64: "fp64_contents",
    DType.BYTES: "bytes_contents",
}
"""Field of the typed contents by datatype; FP16 and BF16 have none."""


def read_request(
    message: ModelInferRequest, raw: list[bytes], signature: Signature, memory: SharedMemory
) -> InferRequest:
    """Read the request in a message; `raw` is its `raw_input_contents`, which protobuf copies at each access.

    Raises RequestError or TensorError, naming the tensor at fault.
    """
    parameters = read_parameters(plain_parameters(message.parameters, "the request"), "the request")
    inputs = [
        InferInput(
            given.name,
            list(given.shape),
            given.datatype,
            given.contents if given.HasField("contents") else msgspec.UNSET,
            plain_parameters(given.parameters, f"input `{given.name}`"),
        )
        for given in message.inputs
    ]
    outputs = [
        InferOutput(wanted.name, plain_parameters(wanted.parameters, f"output `{wanted.name}`"))
        for wanted in message.outputs
    ]
    rest = list(reversed(raw))
    feeds = read_inputs(inputs, data_reader(rest, memory), signature)
    raw_inputs = raw_rows(feeds, signature, truncate=read_bool(parameters, "truncate", "the request", False))
    if rest:
        raise RequestError(f"raw_input_contents has {len(rest)} extra entries after the inputs")
    return InferRequest(
        feeds={} if raw_inputs else feeds,
        outputs=read_outputs(outputs, signature, memory, binary=True, raw=raw_inputs is not None),
        id=message.id,
        timeout_us=read_count(parameters, "timeout", "the request"),
        precision=read_precision(parameters),
        raw=raw_inputs,
    )


def write_answer(model: Model, request: InferRequest, answer: Answer) -> ModelInferResponse:
    """Encode the requested outputs, as raw bytes or in shared memory."""
    message = ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    message.parameters["precision"].string_param = answer.precision
    for wanted in request.outputs:
        spec, array = render_output(wanted, answer.outputs[wanted.name], model.signature)
        output = message.outputs.add(name=spec.name, datatype=spec.dtype.value, shape=array.shape)
        data = write_binary(array, spec.dtype)
        if region := wanted.region:
            region.write(data, spec.name)
            output.parameters["shared_memory_region"].string_param = region.region.status.name
            output.parameters["shared_memory_byte_size"].int64_param = len(data)
            output.parameters["shared_memory_offset"].int64_param = region.offset
            data = b""  # clients expect one entry per output
        message.raw_output_contents.append(data)
    return message


def size_of(message: ModelInferRequest, raw: list[bytes]) -> int:
    """Estimate the bytes of the tensors in a message."""
    typed = (values for given in message.inputs for _, values in given.contents.ListFields())
    return sum(map(len, raw)) + 8 * sum(map(len, typed))


def data_reader(raw: list[bytes], memory: SharedMemory) -> ReadData:
    """Return a function that reads an input from shared memory, else the next raw entry (last in the list), else typed contents."""
    all_raw = bool(raw)

    def read(given: InferInput, dtype: DType, shape: tuple[int, ...], files: bool) -> Array:
        owner = f"input `{given.name}`"
        region = memory.slice(given.parameters, owner)
        if given.data is not msgspec.UNSET and (region or all_raw):
            other = "shared memory" if region else "raw_input_contents"
            raise RequestError(f"{owner} has contents, but the request also uses {other}", hint="send one of them")
        if region:
            return read_binary(region.read(), dtype, shape, given.name, files=files)
        if all_raw and not raw:
            raise RequestError(f"{owner} has no entry in raw_input_contents")
        if all_raw:
            return read_binary(memoryview(raw.pop()), dtype, shape, given.name, files=files)
        contents = InferTensorContents() if given.data is msgspec.UNSET else given.data
        return _read_contents(contents, dtype, shape, given.name, files=files)

    return read


def _read_contents(
    contents: InferTensorContents, dtype: DType, shape: tuple[int, ...], name: str, *, files: bool
) -> Array:
    """Return the array in an input's typed contents, checked like numbers in JSON."""
    if dtype not in _FIELDS:
        raise RequestError(
            f"input `{name}` is {dtype.value}, which has no typed contents", hint="send it in raw_input_contents"
        )
    field = _FIELDS[dtype]
    if wrong := [found.name for found, _ in contents.ListFields() if found.name != field]:
        raise RequestError(f"input `{name}` is {dtype.value}, but has {wrong[0]}", hint=f"send {field}")
    values = list(getattr(contents, field))
    if dtype is DType.BYTES and files:
        return _files(values, shape, name)
    if dtype is DType.BYTES:
        values = [decode_text(memoryview(value), name) for value in values]
    return read_json(values, dtype, shape, name)


def _files(values: list[bytes], shape: tuple[int, ...], name: str) -> Array:
    if len(values) != math.prod(shape):
        raise RequestError(f"input `{name}` holds {len(values)} elements, but its shape is {list(shape)}")
    result = np.empty(len(values), np.object_)
    result[:] = values
    return result.reshape(shape)


def plain_parameters(parameters: Mapping[str, InferParameter], owner: str) -> dict[str, Parameter]:
    """Return parameters as Python values; RequestError for one without a value."""
    result: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise RequestError(f"parameter `{name}` of {owner} has no value")
        result[name] = getattr(parameter, choice)
    return result
