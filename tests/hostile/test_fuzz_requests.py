"""Fuzz of connections, bodies and messages: every input gets a proper response.

Some seconds here; DEMI_FUZZ_EXAMPLES asks for more examples of each, for minutes or a night.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from demi.errors import InputError
from demi.server.grpc.calls import MessageLimits
from demi.server.grpc.inference import ModelInferRequest
from demi.server.grpc.message_size import weigh
from demi.server.grpc.wire import read_request as read_message
from demi.server.http.app import create_app
from demi.server.http.compression import inflate
from demi.server.http.connection import Connection
from demi.server.http.connection_limit import ConnectionLimit
from demi.server.http.fast_path import FastConnection
from demi.server.memory_limit import NO_LIMIT
from demi.server.models.repository import Repository
from demi.server.protocol.body import read_request
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY
from demi.server.settings import ServeSettings
from tests.server.bundles import SCALE, TYPES
from tests.server.fakes import message, signature_of
from tests.server.test_fuzz import bodies, model_of

MORE = settings(
    max_examples=int(os.environ.get("DEMI_FUZZ_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
ROW = message([1, 2, 3], shape=[1, 3])
SIGNATURE = signature_of("x:fp32[batch,3]")
SETTINGS = ServeSettings(max_body_bytes=20_000, max_header_bytes=2000)

lengths = st.one_of(st.integers(-1, 40_000).map(str), st.sampled_from(["", "0x1", "1e3", "+3", "3, 3", "9" * 30, "٣"]))
names = st.sampled_from(
    [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "Expect",
        "Content-Encoding",
        "Inference-Header-Content-Length",
        "Accept-Encoding",
        "X-Request-Id",
        "X",
    ]
)
values = st.one_of(
    lengths,
    st.sampled_from(
        ["chunked", "gzip", "close", "keep-alive", "upgrade", "websocket", "h2c", "100-continue", "x" * 3000]
    ),
    st.text(st.characters(max_codepoint=255), max_size=10),
)
targets = st.one_of(
    st.sampled_from(["/v2/models/scale/infer", "/v2/health/live", "/v2", "*", "http://x/v2", "//", "/%zz", "/\u00ff"]),
    st.text(st.characters(max_codepoint=255), max_size=10),
)
heads = st.builds(
    lambda method, target, version, headers: (
        f"{method} {target} {version}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    ).encode("utf-8", "replace"),
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "get", ""]),
    targets,
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP", ""]),
    st.lists(st.tuples(names, values), max_size=5),
)
GOOD = b"POST /v2/models/scale/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(ROW) + ROW
chunks = st.sampled_from([b"5\r\nhello\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"0\r\nX: y\r\n\r\n"])
streams = st.lists(st.one_of(st.just(GOOD), heads, bodies, chunks, st.binary(max_size=30)), min_size=1, max_size=4)
cuts = st.lists(st.integers(1, 400), max_size=4)


class Wire(asyncio.Transport):
    """Transport without a socket that keeps written bytes, and whether it is closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        """Keep the bytes."""
        self.written += data

    def close(self) -> None:
        """Mark it as closed."""
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        """Return whether it is closed."""
        return self.closed

    def get_write_buffer_size(self) -> int:
        """Return 0: everything is read at once."""
        return 0

    def pause_reading(self) -> None:
        """Do nothing."""

    resume_reading = pause_reading


@pytest.fixture(scope="module", params=[True, False], ids=["express", "all others"])
def server(request) -> Iterator[tuple[asyncio.Runner, Any]]:
    """Return a function that creates connections to an application with two models."""
    repository = Repository([model_of("scale", SCALE, free=True), model_of("types", TYPES, free=False)])
    app = create_app(repository, SETTINGS)
    config = Config(app, ws="none", log_config=None, lifespan="off")
    config.load()

    def make() -> Connection:
        rest = {"config": config, "server_state": ServerState(), "app_state": {}}
        if request.param:
            assert app.respond is not None
            return FastConnection(app.respond, SETTINGS, ConnectionLimit(10), **rest)
        return Connection(SETTINGS, ConnectionLimit(10), **rest)

    with asyncio.Runner() as runner:
        yield runner, make
    repository.close(1)


@MORE
@given(streams, cuts)
def test_any_bytes_on_a_connection(server, parts, lengths):
    """Only complete responses are sent, none of them a 5xx error, and no exception reaches the event loop."""
    runner, make = server
    written, escaped = runner.run(talk(make, b"".join(parts), lengths))

    assert not escaped
    for status in statuses(written):
        assert status < 500 or status == 501


async def talk(make: Any, data: bytes, lengths: list[int]) -> tuple[bytes, list[Any]]:
    """Return the bytes that a connection writes for this input, cut into pieces, and the unhandled exceptions."""
    escaped: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: escaped.append(context))
    connection, wire = make(), Wire()
    connection.connection_made(wire)
    for length in [*lengths, len(data)]:
        piece, data = data[:length], data[length:]
        if piece and not wire.closed:
            connection.data_received(piece)
        await asyncio.sleep(0)
    for _ in range(200):
        if not connection.tasks or getattr(connection.cycle, "more_body", False):
            break
        await asyncio.sleep(0.002)
    connection.connection_lost(None)
    while tasks := list(connection.tasks):
        await asyncio.wait(tasks, timeout=5)
    await asyncio.sleep(0)
    return bytes(wire.written), escaped


def statuses(written: bytes) -> list[int]:
    """Return the status of every response, each of which must be complete."""
    found = []
    while written:
        head, end, rest = written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), head[:100]
        assert end
        status = int(head[9:12])
        lines = [line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:]]
        length = int(dict(lines).get(b"content-length", b"0"))  # type: ignore[call-overload]
        found.append(status)
        if rest[:9] == b"HTTP/1.1 ":
            length = 0  # an answer to HEAD
        written = b"" if status < 200 else rest[length:]
    return found


@MORE
@given(bodies, st.binary(max_size=60), lengths)
def test_any_body(body, tail, length):
    """A body is read, or refused with a client error."""
    for text in (None, length, str(len(body))):
        try:
            request = read_request(body + tail, text, SIGNATURE, most_parsed=100_000)
        except InputError:
            continue
        assert {"x"} == set(request.feeds)


@MORE
@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_any_compressed_body(body, encoding):
    """Invalid compressed bodies are refused, and so are those that are too large."""
    with contextlib.suppress(InputError):
        assert len(inflate(body, encoding, 100)) <= 100


scalars = st.tuples(st.integers(1, 16), st.integers(0, 7), st.binary(max_size=6)).map(
    lambda parts: bytes([parts[0] << 3 & 127 | parts[1], len(parts[2])]) + parts[2]
)
wires = st.recursive(
    st.one_of(scalars, st.binary(max_size=6)),
    lambda inner: st.tuples(st.integers(1, 8), st.lists(inner, max_size=6).map(b"".join)).map(
        lambda parts: bytes([parts[0] << 3 | 2, min(len(parts[1]), 127)]) + parts[1][:127]
    ),
)


@MORE
@given(st.lists(wires, max_size=8).map(b"".join))
def test_any_message(data):
    """A valid message's estimate is at least its number of entries; it is read, or refused with a client error."""
    try:
        parsed = ModelInferRequest.FromString(data)
    except DecodeError:
        parsed = None
    try:
        weight = weigh(data, ModelInferRequest, 2**40)
    except InputError:
        assert parsed is None
        return
    if parsed is None:
        return
    assert weight >= 512 * (1 + len(parsed.inputs) + len(parsed.outputs) + len(parsed.parameters))
    raw = list(parsed.raw_input_contents)
    try:
        request = read_message(parsed, raw, SIGNATURE, NO_SHARED_MEMORY)
    except InputError:
        return
    assert np.float32 == request.feeds["x"].dtype


@MORE
@given(st.binary(max_size=200))
def test_any_bytes_for_a_message(data):
    """Bytes are a valid message or get a client error."""

    async def parse() -> ModelInferRequest:
        return await MessageLimits(100_000).parse(ModelInferRequest, data, NO_LIMIT.reserve())

    with contextlib.suppress(InputError):
        asyncio.run(parse())
