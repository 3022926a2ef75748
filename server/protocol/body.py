"""Parse the HTTP body of an infer request and encode the answer. Pure functions.

A body is JSON, or JSON followed by tensors as bytes, or only the bytes of one tensor (`raw_body.py`); docs/http.md describes
all three. The request that `read_request` returns is checked: each tensor has the name, datatype and shape that the model
declares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from demi.server.errors import RequestError
from demi.server.protocol.answer import Answer
from demi.server.protocol.binary_tensors import read_binary, write_binary
from demi.server.protocol.header_cache import HeaderCache
from demi.server.protocol.json_message import read_length, read_message
from demi.server.protocol.json_tensors import read_json, read_json_files, write_json
from demi.server.protocol.parameters import read_bool, read_count, read_parameters, read_precision
from demi.server.protocol.raw_body import looks_like_json, read_file, read_raw
from demi.server.protocol.request import InferRequest, raw_rows, read_inputs, read_outputs, render_output
from demi.server.protocol.schemas import FloatInput, InferInput
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY, RegionSlice, SharedMemory
from demi.server.protocol.signature import Signature
from demi.server.settings import NonFinite
from demi.tensors import Array, DType, Feeds


class InferAnswer(msgspec.Struct, frozen=True):
    """The body of an answer; `header_length` is the length of its JSON if tensors follow as bytes, else None."""

    body: bytes
    header_length: int | None


def read_request(
    body: bytes,
    header_length: str | None,
    signature: Signature,
    memory: SharedMemory = NO_SHARED_MEMORY,
    cache: HeaderCache | None = None,
    most_parsed: int = 2**63,
) -> InferRequest:
    """Parse a body, given the value of its `Inference-Header-Content-Length` header, or None.

    With a `cache`, JSON headers that were parsed before are not parsed again. Raises RequestError or TensorError, naming
    the tensor at fault, and BodyTooLargeError if the values in the JSON could take more than `most_parsed` bytes of memory.
    """
    length = read_length(header_length, len(body))
    if header_length is not None and length == 0:
        return read_raw(body, signature)
    if header_length is None and signature.takes_files and not looks_like_json(body):
        return read_file(body, signature)
    text = body[:length]
    if cache and (header := cache.find(text, len(body) - length)):
        return header.read(body, length)
    if cache and length == len(body) and (request := cache.layouts.read(text, most_parsed)):
        return request
    message = read_message(text, most_parsed, floats=signature.only_floats)
    parameters = read_parameters(message.parameters, "the request")
    binary = read_bool(parameters, "binary_data_output", "the request", False)
    feeds = _read_feeds(message.inputs, memoryview(body)[length:], signature, memory)
    raw = raw_rows(feeds, signature, truncate=read_bool(parameters, "truncate", "the request", False))
    request = InferRequest(
        feeds={} if raw else feeds,
        outputs=read_outputs(message.outputs or [], signature, memory, binary=binary, raw=raw is not None),
        id=message.id or "",
        timeout_us=read_count(parameters, "timeout", "the request"),
        precision=read_precision(parameters),
        raw=raw,
    )
    if cache and raw is None:
        if length < len(body):
            cache.keep(text, message.inputs, request, signature)
        else:
            cache.layouts.keep(text, message, request, signature)
    return request


def write_answer(
    model: str,
    version: str,
    request: InferRequest,
    answer: Answer,
    signature: Signature,
    non_finite: NonFinite,
) -> InferAnswer:
    """Encode the outputs that the request asked for, each in the form it asked for.

    Raises RequestError for a value that JSON cannot represent.
    """
    entries: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for wanted in request.outputs:
        spec, array = render_output(wanted, answer.outputs[wanted.name], signature)
        entry: dict[str, Any] = {"name": spec.name, "datatype": spec.dtype.value, "shape": list(array.shape)}
        if wanted.region:
            wanted.region.write(write_binary(array, spec.dtype), spec.name)
        elif wanted.binary:
            tail.append(write_binary(array, spec.dtype))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            # No `parameters` here: the C++ client would expect binary data.
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


def _read_feeds(inputs: Sequence[InferInput], tail: memoryview, signature: Signature, memory: SharedMemory) -> Feeds:
    """Read the inputs of a message: each is JSON, bytes after the message, or in shared memory."""
    at = 0

    def read_data(given: InferInput, dtype: DType, shape: tuple[int, ...], files: bool) -> Array:
        nonlocal at
        size, region = _source(given, memory)
        files = files and dtype is DType.BYTES
        if region:
            return read_binary(region.read(), dtype, shape, given.name, files=files)
        if size is None:
            if files:
                return read_json_files(given.data, shape, given.name)
            return read_json(given.data, dtype, shape, given.name, checked=isinstance(given, FloatInput))
        if size > len(tail) - at:
            raise RequestError(f"input `{given.name}` should have {size} bytes, but only {len(tail) - at} follow")
        at += size
        return read_binary(tail[at - size : at], dtype, shape, given.name, files=files)

    feeds = read_inputs(inputs, read_data, signature)
    if at != len(tail):
        raise RequestError(f"the body has {len(tail) - at} extra bytes after the inputs")
    return feeds


def _source(given: InferInput, memory: SharedMemory) -> tuple[int | None, RegionSlice | None]:
    """Return the number of bytes that an input has after the message, or its slice of shared memory; neither for JSON."""
    if given.parameters is None and given.data is not msgspec.UNSET:
        return None, None
    owner = f"input `{given.name}`"
    parameters = read_parameters(given.parameters, owner)
    region = memory.slice(parameters, owner)
    size = read_count(parameters, "binary_data_size", owner)
    sources = [
        source
        for source, is_given in (
            ("data", given.data is not msgspec.UNSET),
            ("binary_data_size", size is not None),
            ("shared memory", region is not None),
        )
        if is_given
    ]
    if len(sources) != 1:
        found = "both " + " and ".join(sources) if sources else "neither data nor binary_data_size"
        raise RequestError(f"{owner} has {found}", hint="give exactly one of them")
    return size, region
