"""A gRPC infer request to checked tensors, and an answer to its message: what `server/protocol/body.py` is for HTTP."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

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
from demi.server.protocol.parameters import read_parameters, read_wish, whole_number
from demi.server.protocol.request import InferRequest, ReadData, read_inputs, read_outputs, shown
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
"""The field of typed contents for each datatype; FP16 and BF16 have none."""


def read_request(
    message: ModelInferRequest, raw: list[bytes], signature: Signature, memory: SharedMemory
) -> InferRequest:
    """The request in a message; `raw` are its `raw_input_contents`, which protobuf copies each time it is asked.

    Raises RequestError or TensorError, naming the tensor wherever one is to blame.
    """
    parameters = read_parameters(_plain(message.parameters, "the request"), "the request")
    inputs = [
        InferInput(
            given.name,
            list(given.shape),
            given.datatype,
            given.contents if given.HasField("contents") else msgspec.UNSET,
            _plain(given.parameters, f"input `{given.name}`"),
        )
        for given in message.inputs
    ]
    outputs = [
        InferOutput(wanted.name, _plain(wanted.parameters, f"output `{wanted.name}`")) for wanted in message.outputs
    ]
    rest = list(reversed(raw))
    feeds = read_inputs(inputs, _reader(rest, memory), signature)
    if rest:
        raise RequestError(f"{len(rest)} entries of raw_input_contents are left over after the inputs")
    return InferRequest(
        feeds=feeds,
        outputs=read_outputs(outputs, signature, memory, binary=True),
        id=message.id,
        timeout_us=whole_number(parameters, "timeout", "the request"),
        wish=read_wish(parameters),
    )


def write_answer(model: Model, request: InferRequest, answer: Answer) -> ModelInferResponse:
    """The answer with the outputs that the request asked for, raw or in shared memory."""
    message = ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    message.parameters["precision"].string_param = answer.precision
    for wanted in request.outputs:
        spec, array = shown(wanted, answer.outputs[wanted.name], model.signature)
        output = message.outputs.add(name=spec.name, datatype=spec.dtype.value, shape=array.shape)
        data = write_binary(array, spec.dtype)
        if place := wanted.place:
            place.write(data, spec.name)
            output.parameters["shared_memory_region"].string_param = place.region.status.name
            output.parameters["shared_memory_byte_size"].int64_param = len(data)
            output.parameters["shared_memory_offset"].int64_param = place.offset
            data = b""  # clients count one entry for each output
        message.raw_output_contents.append(data)
    return message


def size_of(message: ModelInferRequest, raw: list[bytes]) -> int:
    """About how many bytes the tensors of a message take."""
    typed = (values for given in message.inputs for _, values in given.contents.ListFields())
    return sum(map(len, raw)) + 8 * sum(map(len, typed))


def _reader(raw: list[bytes], memory: SharedMemory) -> ReadData:
    """What reads each input: from shared memory, else from the next raw entry (the last of the list), else as typed."""
    all_raw = bool(raw)

    def read(given: InferInput, dtype: DType, shape: tuple[int, ...]) -> Array:
        owner = f"input `{given.name}`"
        place = memory.place(given.parameters, owner)
        if given.data is not msgspec.UNSET and (place or all_raw):
            other = "a place in shared memory" if place else "raw_input_contents"
            raise RequestError(f"{owner} has contents, but the request has {other}", hint="send one of them")
        if place:
            return read_binary(place.read(), dtype, shape, given.name)
        if all_raw and not raw:
            raise RequestError(f"{owner} has no entry in raw_input_contents")
        if all_raw:
            return read_binary(memoryview(raw.pop()), dtype, shape, given.name)
        contents = InferTensorContents() if given.data is msgspec.UNSET else given.data
        return _read_contents(contents, dtype, shape, given.name)

    return read


def _read_contents(contents: InferTensorContents, dtype: DType, shape: tuple[int, ...], name: str) -> Array:
    """The array that one input's typed contents hold, by the same checks as numbers in JSON."""
    if dtype not in _FIELDS:
        raise RequestError(f"input `{name}` is {dtype.value}, which has no typed contents", hint="send it raw")
    field = _FIELDS[dtype]
    if wrong := [found.name for found, _ in contents.ListFields() if found.name != field]:
        raise RequestError(f"input `{name}` is {dtype.value}, but has {wrong[0]}", hint=f"send {field}")
    values = list(getattr(contents, field))
    if dtype is DType.BYTES:
        values = [decode_text(memoryview(value), name) for value in values]
    return read_json(values, dtype, shape, name)


def _plain(parameters: Mapping[str, InferParameter], owner: str) -> dict[str, Parameter]:
    """Parameters as Python values; RequestError for one without a value."""
    result: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise RequestError(f"parameter `{name}` of {owner} has no value")
        result[name] = getattr(parameter, choice)
    return result
