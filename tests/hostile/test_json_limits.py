"""Bodies that are small on the wire and large in memory, and many bodies within their limits at once."""

from __future__ import annotations

import gzip
import socket
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import httpx
import orjson
import pytest

from demi.server.errors import BodyTooLargeError, OverloadedError
from demi.server.http.compression import inflate
from demi.server.memory_limit import MemoryLimit
from demi.server.protocol.body import read_request
from demi.server.protocol.json_size import check_weight, weigh
from tests.hostile.attack import MIB, held_connections, is_live, peak_bytes, probed
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import message, signature_of
from tests.server.processes import serving

HEAD = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":['
TAIL = b"0]}]}"
INFER = "/v2/models/scale/infer"
PATHS = ("/v2/repository/index", "/v2/repository/models/scale/load", "/v2/logging", "/v2/trace/setting")
PARTS = {
    "lists": b"[],",
    "lists of one": b"[0],",
    "objects": b"{},",
    "objects of one": b'{"":0},',
    "numbers": b"0,",
    "fractions": b"1.5,",
    "texts": b'"ab",',
    "nothing": b"null,",
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_large_bodies_are_refused_before_parsing(part):
    """Every way to write millions of values is counted in the bytes before parsing."""
    body = HEAD + part * (8 * MIB) + TAIL
    with pytest.raises(BodyTooLargeError, match="--max-parsed"):
        read_request(body, None, signature_of("x:fp32[batch,3]"), most_parsed=128 * MIB)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_the_estimate_is_at_least_the_memory(part):
    """The estimate is at least the memory that Python uses for a text, apart from its characters."""
    text = b"[" + part * 20_000 + b"0]"
    tracemalloc.start()
    values = orjson.loads(text)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert 20_001 == len(values)
    assert memory < weigh(text) + 10_000
    assert weigh(text) < 5 * memory


def test_estimate_of_one_large_object():
    """Members of an object count more than elements of an array."""
    text = orjson.dumps({str(number): number for number in range(50_000)})
    tracemalloc.start()
    values = orjson.loads(text)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert 50_000 == len(values)
    assert memory - len(text) < weigh(text)


def test_a_large_tensor_of_json_is_read():
    """Three million numbers are within the default limits."""
    check_weight(HEAD + b"0.123," * (3 * MIB) + TAIL, 128 * MIB)


def test_a_short_text_is_not_counted():
    """A text too short to exceed the limit is not counted."""
    check_weight(b"{" * 1000, 96_000)
    with pytest.raises(BodyTooLargeError):
        check_weight(b"{" * 1001, 96_000)


def test_decompression_reserves_memory():
    """Decompression reserves memory for every mebibyte, and stops before the limit of the body."""
    memory_limit = MemoryLimit(3 * MIB)
    with memory_limit.reserve() as reservation, pytest.raises(OverloadedError):
        inflate(gzip.compress(bytes(16 * MIB)), "gzip", 32 * MIB, reservation)

    assert 0 == memory_limit.held


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """Return a server with default limits, except for the bytes in flight."""
    folder = tmp_path_factory.mktemp("models")
    with serving(write_bundle(folder / "scale", SCALE), "--max-in-flight", "96M", "--no-grpc") as server:
        yield server


@pytest.mark.parametrize("part", ["lists", "objects of one"])
def test_compressed_bombs_are_refused(victim, part):
    """Some 60 KiB that unpack to 60 MiB are refused, and probes are answered meanwhile."""
    text = PARTS[part]
    bomb = gzip.compress(HEAD + text * (60 * MIB // len(text)) + TAIL)
    before = peak_bytes(victim)

    def attack() -> set[int]:
        with ThreadPoolExecutor(3) as pool:
            return set(pool.map(lambda _: send(victim.url, bomb), range(3)))

    assert probed(victim, attack) <= {413, 503}
    assert 413 == send(victim.url, bomb)
    assert peak_bytes(victim) - before < 384 * MIB


def send(url: str, packed: bytes) -> int:
    """Return the status of a compressed infer request."""
    return httpx.post(url + INFER, content=packed, headers={"content-encoding": "gzip"}, timeout=60).status_code


def test_bodies_in_flight_are_bounded(victim):
    """Of ten half-sent large bodies some get 503, health and small requests are answered, and memory is freed."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), 60 * MIB)
    before = peak_bytes(victim)
    with held_connections(victim.url, 5, head) as connections:
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda connection: fill(connection, 40 * MIB), connections))
        refused = [connection for connection in connections if received(connection).startswith(b"HTTP/1.1 503 ")]
        assert is_live(victim)
        assert 200 == httpx.post(victim.url + INFER, content=message([1, 2, 3], shape=[1, 3])).status_code

    assert 3 <= len(refused) < 5
    assert peak_bytes(victim) - before < 192 * MIB
    large = httpx.post(victim.url + INFER, content=message([1, 2, 3], shape=[1, 3]) + b" " * (50 * MIB), timeout=60)
    assert 200 == large.status_code


def fill(connection: socket.socket, size: int) -> None:
    """Send this many bytes, or as many as the server accepts."""
    connection.settimeout(20)
    try:
        for _ in range(size // MIB):
            connection.sendall(b" " * MIB)
    except OSError:
        pass


def received(connection: socket.socket) -> bytes:
    """Return the bytes that the server has sent so far."""
    connection.settimeout(1)
    try:
        return connection.recv(65536)
    except OSError:
        return b""


@pytest.mark.parametrize("path", PATHS)
def test_other_bodies_are_short(victim, path):
    """Bodies of requests other than inference may have 128 KiB, and no path parses more."""
    answer = httpx.post(victim.url + path, content=b"[" * (MIB // 4))

    assert answer.status_code in (403, 413)
