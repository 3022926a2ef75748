"""An infer request from its bytes, and the bytes of its answer: pure functions, and the end of all doubt.

Past `read_request` every tensor has the name, datatype and shape that the model declares. A request is JSON, or JSON
followed by tensors as bytes, or nothing but the bytes of one tensor (`raw_body.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from demi.server.errors import RequestError
from demi.server.protocol.answer import Answer
from demi.server.protocol.binary_tensors import read_binary, write_binary
from demi.server.protocol.header_cache import Heads
from demi.server.protocol.json_message import read_length, read_message
from demi.server.protocol.json_tensors import read_json, write_json
from demi.server.protocol.parameters import read_parameters, read_wish, switch, whole_number
from demi.server.protocol.raw_body import read_raw
from demi.server.protocol.request import InferRequest, read_inputs, read_outputs, shown
from demi.server.protocol.schemas import InferInput
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY, Place, SharedMemory
from demi.server.protocol.signature import Signature
from demi.server.settings import NonFinite
from demi.tensors import Array, DType, Feeds


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The body of an answer; `header_length` is that of its JSON where tensors follow as bytes, else None."""

    body: bytes
    header_length: int | None


def read_request(
    body: bytes,
    header_length: str | None,
    signature: Signature,
    memory: SharedMemory = NO_SHARED_MEMORY,
    heads: Heads | None = None,
    most_parsed: int = 2**63,
) -> InferRequest:
    """The request in a body, by the value of its `Inference-Header-Content-Length` header (None where it has none).

    Where `heads` are given, what they know of the model's requests is not read again. Raises RequestError or TensorError,
    naming the tensor wherever one is to blame, and BodyTooLargeError where the values of its JSON could take more than
    `most_parsed` bytes of memory.
    """
    length = read_length(header_length, len(body))
    if header_length is not None and length == 0:
        return read_raw(body, signature)
    text = body[:length]
    if heads and (head := heads.find(text, len(body) - length)):
        return head.read(body, length)
    message = read_message(text, most_parsed)
    parameters = read_parameters(message.parameters, "the request")
    binary = switch(parameters, "binary_data_output", "the request", False)
    request = InferRequest(
        feeds=_read_feeds(message.inputs, memoryview(body)[length:], signature, memory),
        outputs=read_outputs(message.outputs or [], signature, memory, binary=binary),
        id=message.id or "",
        timeout_us=whole_number(parameters, "timeout", "the request"),
        wish=read_wish(parameters),
    )
    if heads and length < len(body):
        heads.keep(text, message.inputs, request, signature)
    return request


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
        spec, array = shown(wanted, answer.outputs[wanted.name], signature)
        entry: dict[str, Any] = {"name": spec.name, "datatype": spec.dtype.value, "shape": list(array.shape)}
        if wanted.place:
            wanted.place.write(write_binary(array, spec.dtype), spec.name)
        elif wanted.binary:
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
    if not tail:
        return InferAnswer(text, None)
    return InferAnswer(b"".join([text, *tail]), len(text))


def _read_feeds(inputs: list[InferInput], tail: memoryview, signature: Signature, memory: SharedMemory) -> Feeds:
    """The inputs of a message: each as JSON in it, as bytes after it, or in shared memory."""
    at = 0

    def read_data(given: InferInput, dtype: DType, shape: tuple[int, ...]) -> Array:
        nonlocal at
        size, place = _source(given, memory)
        if place:
            return read_binary(place.read(), dtype, shape, given.name)
        if size is None:
            return read_json(given.data, dtype, shape, given.name)
        if size > len(tail) - at:
            raise RequestError(f"input `{given.name}` should have {size} bytes, but {len(tail) - at} are there")
        at += size
        return read_binary(tail[at - size : at], dtype, shape, given.name)

    feeds = read_inputs(inputs, read_data, signature)
    if at != len(tail):
        raise RequestError(f"{len(tail) - at} bytes are left over after the inputs")
    return feeds


def _source(given: InferInput, memory: SharedMemory) -> tuple[int | None, Place | None]:
    """How many bytes after the message are an input's, or its place in shared memory; neither where it is JSON."""
    owner = f"input `{given.name}`"
    parameters = read_parameters(given.parameters, owner)
    place = memory.place(parameters, owner)
    size = whole_number(parameters, "binary_data_size", owner)
    ways = [
        word
        for word, is_there in (
            ("data", given.data is not msgspec.UNSET),
            ("binary_data_size", size is not None),
            ("a place in shared memory", place is not None),
        )
        if is_there
    ]
    if len(ways) != 1:
        found = "both " + " and ".join(ways) if ways else "neither data nor binary_data_size"
        raise RequestError(f"{owner} has {found}", hint="give one of them")
    return size, place
