"""The fast path over real sockets: it gives the same answers as ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Iterator

import numpy as np
import orjson
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from demi.server.errors import UnavailableError
from demi.server.http.answer import HttpAnswer, error_answer
from demi.server.http.connection_limit import ConnectionLimit
from demi.server.http.fast_path import HOLD_S, FastConnection, FastRequest
from demi.server.settings import ServeSettings
from demi.tensors import DType
from tests.server.bundles import LOGARITHM, SCALE, write_bundle
from tests.server.fakes import binary_message, message, until
from tests.server.processes import ServerProcess, serving

ROW = message([1, 2, 3], shape=[1, 3])
BINARY, LENGTH = binary_message(("x", DType.FP32, [1, 3], np.float32([1, 2, 3]).tobytes()))
CHANGES = re.compile(rb"(date|server-timing|x-request-id): [^\r]*|request id \w+")


def post(body: bytes, path: str = "/v2/models/scale/infer", headers: str = "", version: str = "1.1") -> bytes:
    """Return a request with `Connection: close`, unless the headers say otherwise."""
    close = "" if "Connection" in headers else "Connection: close\r\n"
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\n{close}{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


REQUESTS = {
    "JSON": post(ROW),
    "binary": post(BINARY, headers=f"Inference-Header-Content-Length: {LENGTH}\r\n"),
    "raw": post(BINARY[int(LENGTH) :], headers="Inference-Header-Content-Length: 0\r\n"),
    "version": post(ROW, "/v2/models/scale/versions/1/infer"),
    "percent-encoded": post(ROW, "/v2/models/sc%61le/infer"),
    "query": post(ROW, "/v2/models/scale/infer?x=1"),
    "id": post(ROW, headers="X-Request-Id: mine\r\n"),
    "accept gzip": post(message([1] * 3000, shape=[1000, 3]), headers="Accept-Encoding: gzip\r\n"),
    "unknown model": post(ROW, "/v2/models/nope/infer"),
    "unknown version": post(ROW, "/v2/models/scale/versions/9/infer"),
    "not a model": post(ROW, "/v2/models/infer"),
    "bad JSON": post(b"{"),
    "no body": post(b""),
    "bad header length": post(ROW, headers="Inference-Header-Content-Length: 1e3\r\n"),
    "unknown encoding": post(ROW, headers="Content-Encoding: br\r\n"),
    "HTTP/1.0": post(ROW, version="1.0"),
    "expect": post(ROW, headers="Expect: 100-continue\r\n"),
    "too large": post(b" " * 70_000),
    "get": post(ROW).replace(b"POST", b"GET", 1),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Start a server with the fast path, and one with an access log, which has none."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "scale" / "1", SCALE)
    write_bundle(folder / "logarithm" / "1", LOGARITHM)
    flags = ("--no-grpc", "--max-body", "68K")
    with serving(folder, *flags) as express, serving(folder, *flags, "--access-log") as plain:
        yield express, plain


TRIES = 5
"""Of a request that may be reset."""


def connect(server: ServerProcess) -> socket.socket:
    """Open a plain TCP connection."""
    return socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 10)


def answer_to(server: ServerProcess, *pieces: bytes) -> bytes:
    """Send pieces and receive until the server closes.

    Where it closes before it has read a body that is too large, the connection may be reset before the answer is here;
    then it is asked again.
    """
    for _ in range(TRIES - 1):
        with contextlib.suppress(ConnectionResetError):
            return exchange(server, *pieces)
    return exchange(server, *pieces)


def exchange(server: ServerProcess, *pieces: bytes) -> bytes:
    """Send pieces and receive until the server closes. Raises ConnectionResetError where it closes too early."""
    received = b""
    with connect(server) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.02 if len(pieces) > 1 else 0)
        while chunk := connection.recv(65536):
            received += chunk
    return received


def lines_of(answer: bytes) -> tuple[list[bytes], bytes]:
    """Return status, sorted headers and body, without what differs between runs."""
    head, _, body = CHANGES.sub(b"", answer).partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    return [status, *sorted(headers)], body


@pytest.mark.parametrize("name", REQUESTS)
def test_fast_path_and_asgi_give_the_same_answer(servers, name):
    """Fast path and ASGI give the same status, headers and body, errors included."""
    express, plain = (lines_of(answer_to(server, REQUESTS[name])) for server in servers)

    assert plain == express


def test_a_request_in_pieces(servers):
    """A request split anywhere gets the same answer."""
    request = REQUESTS["binary"]
    whole = lines_of(answer_to(servers[0], request))

    for cut in (10, request.index(b"\r\n\r\n") + 2, len(request) - 5):
        assert whole == lines_of(answer_to(servers[0], request[:cut], request[cut:]))


def test_connection_is_reused(servers):
    """Without `close` a connection stays open, also after an error, and answers have a date."""
    keep = post(ROW, headers="Connection: keep-alive\r\n")
    wrong = post(b"{", headers="Connection: keep-alive\r\n")
    with connect(servers[0]) as connection:
        statuses = []
        for request in (keep, wrong, keep):
            connection.sendall(request)
            answer = connection.recv(65536)
            statuses.append(answer[9:12])
            assert b"\r\ndate: " in answer

    assert [b"200", b"400", b"200"] == statuses


def test_pipelined_requests_keep_their_order(servers):
    """Answers to pipelined requests come in order, on whichever path."""
    keep = "Connection: keep-alive\r\n"
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    numbers = [post(message([n, 0, 0], shape=[1, 3]), headers=keep) for n in range(1, 6)]
    row = numbers[0] + numbers[1] + live + numbers[2] + live + numbers[3] + REQUESTS["unknown model"]
    answer = answer_to(servers[0], row)
    found = [float(each) for each in re.findall(rb'"data":\[([-.\d]+)', answer)]

    assert [2.0, 4.0, 6.0, 8.0] == found
    assert [b"200"] * 6 + [b"404"] == re.findall(rb"HTTP/1.1 (\d+) ", answer)
    assert [2, 3] == [answer.count(b'"data"', 0, place.start()) for place in re.finditer(rb'"live"', answer)]


def test_incomplete_body(servers):
    """After a client leaves in the middle of a body, the server answers the next."""
    with connect(servers[0]) as connection:
        connection.sendall(REQUESTS["JSON"][:-5])

    assert b"200" == answer_to(servers[0], REQUESTS["JSON"])[9:12]


def test_keys_are_required(tmp_path):
    """The fast path requires API keys."""
    write_bundle(tmp_path / "models" / "scale" / "1", SCALE)
    (tmp_path / "keys").write_text("a-key-of-twenty-chars\n")
    with serving(tmp_path / "models", "--no-grpc", "--api-key-file", str(tmp_path / "keys")) as server:
        without = answer_to(server, post(ROW))
        wrong = answer_to(server, post(ROW, headers="X-Api-Key: no\r\n"))
        right = answer_to(server, post(ROW, headers="X-Api-Key: a-key-of-twenty-chars\r\n"))

    assert [b"401", b"401", b"200"] == [answer[9:12] for answer in (without, wrong, right)]
    assert b"www-authenticate: Bearer" in without
    assert "API key" in orjson.loads(without.partition(b"\r\n\r\n")[2])["error"]


class Transport:
    """A transport that records what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def connection_of(respond, keep_alive_s: float = 60.0) -> tuple[FastConnection, Transport]:
    """Make a connection whose requests `respond` answers."""
    config = Config(None, lifespan="off", ws="none", timeout_keep_alive=keep_alive_s)  # type: ignore[arg-type]
    config.load()
    made = FastConnection(
        respond, ServeSettings(), ConnectionLimit(0), config=config, server_state=ServerState(), app_state={}
    )
    transport = Transport()
    made.connection_made(transport)  # type: ignore[arg-type]
    return made, transport


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_an_idle_connection_is_closed(anyio_backend):
    """One timer per connection waits while requests arrive, then closes it."""

    async def respond(*_: object) -> HttpAnswer:
        return HttpAnswer(200, b"{}")

    connection, transport = connection_of(respond, 0.1)
    request = post(ROW, headers="Connection: keep-alive\r\n")
    for _ in range(5):
        connection.data_received(request)
        await asyncio.sleep(0.05)
        assert not transport.closed
    await until(lambda: transport.closed, 3)

    assert 5 == transport.written.count(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_wait_for_disconnect(anyio_backend):
    """`wait_for_disconnect` ends when the client leaves, and nothing is written any more."""
    raised: list[str] = []

    async def respond(method, target, headers, read_body, gone) -> None:
        try:
            await gone()
        except Exception as error:
            raised.append(type(error).__name__)

    connection, transport = connection_of(respond)
    connection.data_received(post(ROW))
    await asyncio.sleep(0.01)
    assert isinstance(connection.cycle, FastRequest)
    connection.connection_lost(None)
    await until(lambda: bool(raised))

    assert ["ClientDisconnect"] == raised
    assert b"" == transport.written


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
@pytest.mark.parametrize(("headers", "held"), [({"retry-after": "1"}, True), ({}, False)])
async def test_reading_pauses_after_retry_after(anyio_backend, headers, held):
    """An answer with Retry-After is sent at once; the next request is read after a pause."""

    async def respond(*_: object) -> HttpAnswer:
        return HttpAnswer(503, b"{}", headers)

    connection, transport = connection_of(respond)
    connection.data_received(post(ROW, headers="Connection: keep-alive\r\n"))
    await until(lambda: bool(transport.written))

    assert transport.reading is not held
    await until(lambda: transport.reading, 5 * HOLD_S)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_unexpected_error_aborts_the_connection(anyio_backend, caplog):
    """An unexpected error is logged, and the connection is aborted."""

    async def respond(*_: object) -> HttpAnswer:
        return HttpAnswer(200, b"{}", {"name": "\N{SNOWMAN}"})

    connection, transport = connection_of(respond)
    connection.data_received(post(ROW))
    await until(lambda: transport.closed)

    assert "an answer could not be written" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_closing_answer(anyio_backend):
    """An answer with `connection: close` has that header once, and the connection is closed."""

    async def respond(*_: object) -> HttpAnswer:
        return error_answer(UnavailableError("it shuts down", ends=True))

    connection, transport = connection_of(respond)
    connection.data_received(post(ROW, headers="Connection: keep-alive\r\n"))
    await until(lambda: transport.closed)

    assert transport.written.startswith(b"HTTP/1.1 503 ")
    assert 1 == transport.written.lower().count(b"connection: close")
