"""Shared memory regions: which objects may be registered, and what happens if they change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import shared_memory as posix
from pathlib import Path

import numpy as np
import orjson
import pytest

from demi.errors import InputError
from demi.server.errors import (
    BodyTooLargeError,
    ForbiddenError,
    NotFoundError,
    RequestError,
)
from demi.server.grpc.inference import InferParameter, ModelInferRequest
from demi.server.grpc.wire import read_request as read_message
from demi.server.grpc.wire import write_answer as write_message
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer
from demi.server.protocol.body import read_request, write_answer
from demi.server.protocol.request import OutputRequest
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.settings import ServeSettings
from tests.server.fakes import DoublingSession, loaded, signature_of

ROW = signature_of("x:fp32[batch,3]", rows=8)
X = np.array([[1, 2, 3]], np.float32)


@pytest.fixture
def block() -> Iterator[posix.SharedMemory]:
    """Create a shared memory object of 64 bytes; the first 12 contain X."""
    block = posix.SharedMemory(create=True, size=64)
    block.buf[:12] = X.tobytes()
    yield block
    block.close()
    block.unlink()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """Return enabled shared memory, for inputs of up to a kilobyte."""
    memory = SharedMemory(allowed=True, max_bytes=1024)
    yield memory
    memory.unregister()


def place(size: object = 12, offset: object = None, region: str = "r") -> dict[str, object]:
    """Return the parameters of a tensor in shared memory."""
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset}
    return {name: value for name, value in parameters.items() if value is not None}


def request(inputs: dict[str, object], outputs: dict[str, object] | None = None, **members: object) -> bytes:
    """Read an HTTP request with input x, and with output y if its parameters are given."""
    x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": inputs, **members}
    return orjson.dumps({"inputs": [x], "outputs": [{"name": "y", "parameters": outputs}] if outputs else []})


def test_input_and_output_over_http(memory, block):
    """Over HTTP, inputs are read from and outputs written to shared memory; the answer has their shape only."""
    memory.register("r", "/" + block.name, 0, 64)
    read = read_request(request(place(), place(offset=32)), None, ROW, memory)
    answer = write_answer("m", "1", read, Answer({"y": 2 * X}, "fp16"), ROW, "null")

    assert X.tolist() == read.feeds["x"].tolist()
    assert [2, 4, 6] == np.frombuffer(block.buf[32:44], np.float32).tolist()
    assert [{"name": "y", "datatype": "FP32", "shape": [1, 3]}] == orjson.loads(answer.body)["outputs"]


def test_input_and_output_over_grpc(memory, block):
    """Over gRPC, the answer has the parameters of the slice, and an empty raw entry."""
    memory.register("r", block.name, 0, 64)
    message = ModelInferRequest()
    x = message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    y = message.outputs.add(name="y")
    for tensor, offset in ((x, 0), (y, 32)):
        tensor.parameters["shared_memory_region"].CopyFrom(InferParameter(string_param="r"))
        tensor.parameters["shared_memory_byte_size"].CopyFrom(InferParameter(int64_param=12))
        tensor.parameters["shared_memory_offset"].CopyFrom(InferParameter(int64_param=offset))
    model = Model("m", "1", ServeSettings(max_queue=1))
    model.start(loaded(DoublingSession()))
    read = read_message(message, [], ROW, memory)
    answer = write_message(model, read, Answer({"y": 2 * X}, "fp16"))
    model.close()

    assert X.tolist() == read.feeds["x"].tolist()
    assert [2, 4, 6] == np.frombuffer(block.buf[32:44], np.float32).tolist()
    assert [b""] == list(answer.raw_output_contents)
    assert 12 == answer.outputs[0].parameters["shared_memory_byte_size"].int64_param


def test_an_input_is_a_copy(memory, block):
    """Later writes by the client do not change the input."""
    memory.register("r", block.name, 0, 64)
    feeds = read_request(request(place()), None, ROW, memory).feeds
    block.buf[:12] = bytes(12)

    assert X.tolist() == feeds["x"].tolist()


def test_a_region_may_begin_anywhere(memory, block):
    """Offsets of region and tensor are added."""
    block.buf[20:32] = X.tobytes()
    memory.register("r", block.name, 16, 48)

    assert X.tolist() == read_request(request(place(offset=4)), None, ROW, memory).feeds["x"].tolist()


@pytest.mark.parametrize(
    "key", ["", "/", ".", "..", "/..", "../etc/passwd", "/../etc/passwd", "a/b", "//a", "a\0b", "a" * 256]
)
def test_a_key_is_never_a_path(memory, key):
    """Keys that are not a single path component are refused."""
    with pytest.raises(RequestError, match="not a valid name of a shared memory object"):
        memory.register("r", key, 0, 1)


def test_a_link_is_not_followed(memory, tmp_path):
    """Symbolic links are not followed."""
    target = tmp_path / "secret"
    target.write_bytes(b"secret")
    link = Path("/dev/shm") / f"demi-link-{os.getpid()}"
    link.symlink_to(target)
    try:
        with pytest.raises(RequestError, match="cannot open shared memory object"):
            memory.register("r", link.name, 0, 6)
    finally:
        link.unlink()


def test_pipes_and_folders_are_refused(memory):
    """Pipes and folders are refused without blocking."""
    pipe = Path("/dev/shm") / f"demi-pipe-{os.getpid()}"
    os.mkfifo(pipe)
    try:
        with pytest.raises(RequestError, match="is not a shared memory object"):
            memory.register("r", pipe.name, 0, 1)
    finally:
        pipe.unlink()
    with pytest.raises(RequestError, match="No such file"):
        memory.register("r", "demi-nothing-of-that-name", 0, 1)


@pytest.mark.parametrize(("offset", "size"), [(0, 65), (64, 1), (2**62, 2**62), (0, 0), (0, -1), (-1, 1)])
def test_a_region_lies_inside_its_object(memory, block, offset, size):
    """A region beyond the end of its object is refused."""
    with pytest.raises(RequestError):
        memory.register("r", block.name, offset, size)


def test_names_are_unique(memory, block):
    """A name can be registered again only after it was unregistered."""
    memory.register("r", block.name, 0, 64)
    with pytest.raises(RequestError, match="registered already"):
        memory.register("r", block.name, 0, 64)
    memory.unregister("r")
    memory.register("r", block.name, 0, 64)


def test_status(memory, block):
    """Status lists one region or all; unknown names are an error there, but not when unregistering."""
    memory.register("a", block.name, 0, 8)
    memory.register("b", block.name, 8, 8)

    assert ["a", "b"] == [region.name for region in memory.status()]
    assert [("b", block.name, 8, 8)] == [(r.name, r.key, r.offset, r.byte_size) for r in memory.status("b")]
    memory.unregister("a")
    memory.unregister("none")
    with pytest.raises(NotFoundError, match="unknown shared memory region `a`"):
        memory.status("a")


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (place(region="none"), "does not give a registered region"),
        (place(size=None), "does not give a registered region and a byte size"),
        (place(size="12"), "must be a whole number"),
        (place(size=-1), "must be a whole number"),
        (place(offset=-4), "must be a whole number"),
        (place(offset=60), "bytes 60 to 72 of shared memory region `r`, which has only 64"),
        (place(size=2**62), "which has only 64"),
        (place(size=8), "has 8 bytes, but FP32 of shape [1, 3] needs 12"),
        ({"shared_memory_byte_size": 12}, "does not give a registered region"),
        ({**place(), "binary_data_size": 12}, "both binary_data_size and shared memory"),
    ],
)
def test_invalid_slices(memory, block, parameters, text):
    """The error names the input and what is wrong with its slice."""
    memory.register("r", block.name, 0, 64)
    with pytest.raises(InputError) as caught:
        read_request(request(parameters), None, ROW, memory)

    assert "input `x`" in str(caught.value)
    assert text in str(caught.value)


def test_an_output_that_does_not_fit(memory, block):
    """An output larger than its slice is an error, and nothing is written."""
    memory.register("r", block.name, 0, 64)
    read = read_request(request(place(), place(size=8, offset=32)), None, ROW, memory)
    with pytest.raises(RequestError, match="output `y` needs 12 bytes, but its shared memory slice has 8"):
        write_answer("m", "1", read, Answer({"y": X}, "fp16"), ROW, "null")

    assert bytes(12) == bytes(block.buf[32:44])


def test_truncated_object(memory, block):
    """A truncated object is an error of the request, not of the server."""
    memory.register("r", block.name, 0, 64)
    read = read_request(request(place(), place()), None, ROW, memory)
    os.truncate(f"/dev/shm/{block.name}", 4)

    with pytest.raises(RequestError, match="has shrunk"):
        read_request(request(place()), None, ROW, memory)
    with pytest.raises(RequestError, match="has shrunk"):
        write_answer("m", "1", read, Answer({"y": X}, "fp16"), ROW, "null")


def test_region_unregistered_during_a_request(memory, block):
    """A region unregistered during a request is an error."""
    memory.register("r", block.name, 0, 64)
    read = read_request(request(place(), place()), None, ROW, memory)
    memory.unregister()

    with pytest.raises(RequestError, match="`r` was unregistered"):
        write_answer("m", "1", read, Answer({"y": X}, "fp16"), ROW, "null")


def test_inputs_have_the_limit_of_bodies(block):
    """Inputs in shared memory have the size limit of bodies."""
    memory = SharedMemory(allowed=True, max_bytes=8)
    memory.register("r", block.name, 0, 64)
    with pytest.raises(BodyTooLargeError, match="input `x` is larger than 8 bytes"):
        read_request(request(place()), None, ROW, memory)
    memory.unregister()


def test_nothing_is_opened_unless_allowed(block):
    """Without the setting, registration and requests with shared memory are refused."""
    memory = SharedMemory(allowed=False, max_bytes=1024)
    with pytest.raises(ForbiddenError):
        memory.register("r", block.name, 0, 64)
    with pytest.raises(RequestError, match="does not offer"):
        read_request(request(place()), None, ROW, memory)


def test_number_of_regions_is_limited(memory, block):
    """The number of regions is limited, since each needs a file descriptor."""
    for number in range(256):
        memory.register(str(number), block.name, 0, 64)
    with pytest.raises(RequestError, match="256 regions are registered already"):
        memory.register("one more", block.name, 0, 64)


def test_output_in_shared_memory_is_not_binary(memory, block):
    """An output in shared memory is not marked as binary."""
    memory.register("r", block.name, 0, 64)
    outputs = read_request(request(place(), place() | {"binary_data": True}), None, ROW, memory).outputs

    assert [("y", False)] == [(output.name, output.binary) for output in outputs if isinstance(output, OutputRequest)]
