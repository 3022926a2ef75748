"""Limits on connections over real sockets: slow clients, large headers, too many connections."""

from __future__ import annotations

import contextlib
import socket
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import orjson
import pytest

from demi.errors import InputError
from demi.server.protocol.body import read_request
from tests.server.bundles import SCALE, TYPES, write_bundle
from tests.server.fakes import message, signature_of
from tests.server.processes import ServerProcess, serving

ROW = message([1, 2, 3], shape=[1, 3])
HEAD = b"POST /v2/models/scale/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENCE = 0.5


@pytest.fixture(scope="module", params=["--access-log", "--no-access-log"])
def impatient(tmp_path_factory, request) -> Iterator[ServerProcess]:
    """A server with half a second for slow clients, 4 KiB for headers, and 20 connections.

    Without a log of every request, infer requests are answered by their connections.
    """
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "scale" / "1", SCALE)
    write_bundle(folder / "types" / "1", TYPES)
    flags = ("--client-timeout", str(PATIENCE), "--max-header", "4K", "--max-connections", "20", request.param)
    with serving(folder, *flags, "--max-body", "16M") as server:
        yield server


@contextlib.contextmanager
def connected(server: ServerProcess, timeout_s: float = 10.0) -> Iterator[socket.socket]:
    """Open a plain TCP connection."""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout_s) as connection:
        yield connection


def is_alive(connection: socket.socket) -> bool:
    """Return whether a request on this connection is answered."""
    received = b""
    connection.sendall(LIVE)
    while not received.endswith(b"}") and (chunk := connection.recv(65536)):
        received += chunk
    return received.startswith(b"HTTP/1.1 200 ")


def rest_of(connection: socket.socket) -> bytes:
    """Receive until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def trickle(connection: socket.socket, data: bytes, pause_s: float = 0.05) -> bytes:
    """Send byte by byte until the server answers; return its answer."""
    with contextlib.suppress(ConnectionError):
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(pause_s)
    return rest_of(connection)


def error_of(answer: bytes, status: int) -> str:
    """Return the message of the only error answer in these bytes."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert b"connection: close" in head
    return str(orjson.loads(body)["error"])


def test_one_byte_at_a_time_is_too_slow(impatient):
    """Slow headers and slow bodies are answered with 408 and the connection is closed."""
    for data, what in ((HEAD % 1000 + b" " * 1000, "headers"), (ROW + b" " * 1000, "body")):
        with connected(impatient) as connection:
            if what == "body":
                connection.sendall(HEAD % len(data))
            started = time.monotonic()
            answer = trickle(connection, data)

        assert what in error_of(answer, 408)
        assert "--client-timeout" in error_of(answer, 408)
        assert time.monotonic() - started < 5
    if "--access-log" in impatient.flags:
        assert impatient.said("refused: status=408")


def test_a_large_body_may_take_longer(impatient):
    """A large body faster than the minimum rate is accepted, even beyond the basic time limit."""
    body = ROW + b" " * (4 * 65536)
    with connected(impatient) as connection:
        connection.sendall(HEAD.replace(b"Host: x", b"Host: x\r\nConnection: close") % len(body))
        for start in range(0, len(body), 65536):
            time.sleep(PATIENCE / 2)
            connection.sendall(body[start : start + 65536])
        answer = rest_of(connection)

    assert answer.startswith(b"HTTP/1.1 200 ")


def test_connection_without_a_request_is_closed(impatient):
    """A connection without a request is closed silently; one after a request may stay idle longer."""
    with connected(impatient) as silent, connected(impatient) as resting:
        assert is_alive(resting)
        assert b"" == rest_of(silent)
        time.sleep(PATIENCE)
        assert is_alive(resting)


def test_a_body_that_stops_after_its_answer(impatient):
    """After an early 404 the connection is closed if the body does not arrive."""
    with connected(impatient) as connection:
        connection.sendall(b"POST /v2/models/nope/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n123")
        answer = rest_of(connection)

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert 1 == answer.count(b"HTTP/1.1")


def test_header_limit(impatient):
    """Long, many or endless headers, and a long path, are answered with 431."""
    with connected(impatient) as connection:
        connection.sendall(LIVE[:-2] + b"X-Long: " + b"a" * 5000 + b"\r\n\r\n")
        assert "--max-header" in error_of(rest_of(connection), 431)
    with connected(impatient) as connection:
        connection.sendall(LIVE[:-2] + b"X: y\r\n" * 1000 + b"\r\n")
        error_of(rest_of(connection), 431)
    with connected(impatient) as connection:
        connection.sendall(b"GET /" + b"a" * 5000)
        error_of(rest_of(connection), 431)
    with connected(impatient) as connection:
        connection.sendall(LIVE[:-2] + b"X-Endless: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"a" * 1000)
                time.sleep(0.001)
        error_of(rest_of(connection), 431)


def test_headers_below_the_limit_with_a_large_body(impatient):
    """Body bytes received with the headers do not count as headers."""
    body = ROW + b" " * 60_000
    with connected(impatient) as connection:
        connection.sendall((HEAD % len(body))[:-2] + b"Connection: close\r\nX: " + b"a" * 3000 + b"\r\n\r\n" + body)
        assert rest_of(connection).startswith(b"HTTP/1.1 200 ")


def test_invalid_http(impatient):
    """Data that is not HTTP is answered with 400 in the usual form."""
    for data in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n"):
        with connected(impatient) as connection:
            connection.sendall(data)
            assert "not valid HTTP" in error_of(rest_of(connection), 400)


def test_endless_bodies_and_trailers_are_refused(impatient):
    """A chunked request is refused at twice the body limit, trailers included."""
    start = HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")
    for data in (b"10000\r\n" + b" " * 65536 + b"\r\n", b""):
        filler = data or b"X: " + b"y" * 3000 + b"\r\n"
        with connected(impatient) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(start + (data or b"0\r\n"))
            sent = 0
            while sent < 100 * 2**20:
                sent += connection.send(filler * 20)
        assert sent < 60 * 2**20


def test_client_that_does_not_read_is_disconnected(impatient):
    """A client that does not read a large answer is disconnected, and its memory freed."""
    n = 300_000
    names = (
        ("flag", "BOOL"),
        ("small", "INT8"),
        ("large", "INT64"),
        ("huge", "UINT64"),
        ("half", "FP16"),
        ("wide", "FP64"),
    )
    sizes = {"BOOL": 1, "INT8": 1, "FP16": 2}
    inputs = [
        {"name": name, "datatype": kind, "shape": [n], "parameters": {"binary_data_size": n * sizes.get(kind, 8)}}
        for name, kind in names
    ]
    inputs.append({"name": "text", "datatype": "BYTES", "shape": [n], "parameters": {"binary_data_size": 4 * n}})
    head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    body = head + bytes(n * (1 + 1 + 8 + 8 + 2 + 8 + 4))
    lines = b"Host: x\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(head), len(body))
    with connected(impatient) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(4):  # more than the kernel's buffers hold
            with contextlib.suppress(OSError):
                connection.sendall(b"POST /v2/models/types/infer HTTP/1.1\r\n" + lines + body)
        assert "--access-log" not in impatient.flags or impatient.said("aborted a client that does not read its answer")


def test_too_many_connections(impatient):
    """Beyond the limit new connections get 503 with Retry-After; the others continue, and closed ones make room."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(impatient)) for _ in range(20)]
        for connection in held:
            connection.sendall(HEAD % len(ROW) + ROW[:-1])
        with connected(impatient) as late:
            late.sendall(HEAD % len(ROW) + ROW)
            answer = rest_of(late)
        held[0].sendall(ROW[-1:])
        assert held[0].recv(65536).startswith(b"HTTP/1.1 200 ")

    assert "--max-connections" in error_of(answer, 503)
    assert b"retry-after: 1" in answer
    time.sleep(0.1)
    assert 200 == httpx.get(impatient.url + "/v2/health/live").status_code


def test_pipelined_requests_are_answered_in_order(impatient):
    """A pipelined request that arrives in pieces does not delay the one before."""
    request = HEAD % len(ROW) + ROW
    last = request.replace(b"Host: x", b"Host: x\r\nConnection: close")
    with connected(impatient) as connection, ThreadPoolExecutor(1) as pool:
        connection.sendall(request * 2 + last[:30])
        sent = pool.submit(lambda: (time.sleep(PATIENCE / 2), connection.sendall(last[30:])))
        answer = rest_of(connection)
        sent.result()

    assert 3 == answer.count(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("whole", [1, 3])
@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", 400),
        (HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"zz\r\n", 400),
    ],
    ids=["no HTTP", "a bad header", "a bad chunk"],
)
@pytest.mark.parametrize("request_", [HEAD % len(ROW) + ROW, LIVE], ids=["infer", "live"])
def test_earlier_requests_are_answered_before_an_error(impatient, request_, whole, rest, status):
    """Earlier requests are answered in order before an invalid one gets its error, and nothing follows."""
    with connected(impatient) as connection:
        connection.sendall(request_ * whole + rest)
        answer = rest_of(connection)

    *answers, last = answer.split(b"HTTP/1.1 ")[1:]
    assert [b"200"] * whole == [each[:3] for each in answers]
    assert error_of(b"HTTP/1.1 " + last, status)


def test_large_header_after_a_complete_request(impatient):
    """Large headers after a complete request get 431 after the first answer."""
    with connected(impatient) as connection:
        connection.sendall(HEAD % len(ROW) + ROW + b"GET / HTTP/1.1\r\nX: ")
        time.sleep(0.05)
        connection.sendall(b"a" * 5000)
        answer, refusal = rest_of(connection).split(b"HTTP/1.1 ")[1:]

    assert answer.startswith(b"200")
    assert "--max-header" in error_of(b"HTTP/1.1 " + refusal, 431)


def test_deep_json_is_refused(impatient):
    """A hundred thousand nested brackets are answered with 400 and do not crash the process."""
    deep = b"[" * 100_000 + b"]" * 100_000
    entry = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":%s}]}'
    for body in (deep, entry % deep, entry.replace(b'"data"', b'"NaN":NaN,"data"') % deep, b'{"id":' * 50_000):
        answer = httpx.post(impatient.url + "/v2/models/scale/infer", content=body)
        assert 400 == answer.status_code, answer.text


def test_huge_shapes_take_no_memory():
    """Huge shapes are refused before an array is allocated."""
    tracemalloc.start()
    for shape in ([10**9, 3], [2**40, 3], [1, 10**12], [8, 3]):
        with pytest.raises(InputError):
            read_request(message([], shape=shape), None, signature_of("x:fp32[batch,3]", rows=8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2**20
