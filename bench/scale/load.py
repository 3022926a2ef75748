"""A closed loop of HTTP clients that counts what became of every request it sent."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
TIMEOUT_S = 30.0
"""A request without an answer for so long is lost."""


@dataclass(slots=True)
class Result:
    """Outcome of the requests: statuses, lost ones (sent, but no whole answer), and connections that were refused."""

    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    refused: int = 0
    latencies_s: list[float] = field(default_factory=list)
    first_error: bytes = b""
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        """Requests with a whole answer, whatever it was."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Requests that were sent and not answered with 200."""
        return self.answered - self.statuses[200] + len(self.lost)

    @property
    def per_second(self) -> float:
        """Good answers per second."""
        return self.statuses[200] / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies, in milliseconds; 100 is the longest."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]

    def __str__(self) -> str:
        return (
            f"{self.per_second:.1f} req/s, p50 {self.percentile_ms(50):.1f} ms, p99 {self.percentile_ms(99):.1f} ms, "
            f"longest {self.percentile_ms(100):.0f} ms, answered {self.answered}, lost {len(self.lost)}, "
            f"not 200: {self.answered - self.statuses[200]}"
        )


def http_request(path: str, body: bytes, port: int, headers: str = "") -> bytes:
    """Return a POST request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost:{port}\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


@contextmanager
def under_load(request: bytes, port: int, connections: int) -> Iterator[Result]:
    """Send a request again and again over several connections while a block runs; the result is complete afterwards."""
    result = Result()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        started = time.perf_counter()
        running = pool.submit(lambda: asyncio.run(_run(request, port, connections, result, stop)))
        try:
            yield result
        finally:
            stop.set()
        running.result()
        result.seconds = time.perf_counter() - started


def measure(request: bytes, port: int, connections: int, seconds: float) -> Result:
    """Send a request over several connections for some seconds."""
    with under_load(request, port, connections) as result:
        time.sleep(seconds)
    return result


async def _run(request: bytes, port: int, connections: int, result: Result, stop: threading.Event) -> None:
    await asyncio.gather(*(_client(request, port, result, stop) for _ in range(connections)))


async def _client(request: bytes, port: int, result: Result, stop: threading.Event) -> None:
    """Send one request after the other; open the connection again when the server closes it."""
    while not stop.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            result.refused += 1
            await asyncio.sleep(0.05)
            continue
        try:
            while not stop.is_set() and await _ask(request, reader, writer, result):
                pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _ask(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, result: Result) -> bool:
    """Send one request, record its end, and return whether the connection goes on.

    A connection that was closed while idle is not a lost request if nothing of an answer had arrived and the server closed it
    before it could have read the request; HTTP clients send such a request again. Here it counts as lost: HAProxy announces
    the end of a connection in its last answer.
    """
    sent = time.perf_counter()
    head = b""
    try:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
        found = LENGTH.search(head)
        body = await asyncio.wait_for(reader.readexactly(int(found[1]) if found else 0), TIMEOUT_S)
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        part = error.partial if isinstance(error, asyncio.IncompleteReadError) else b""
        place = "the body" if head else "the head"
        result.lost.append(
            f"{type(error).__name__} in {place} after {time.perf_counter() - sent:.3f} s and {len(part)} bytes of it"
        )
        return False
    status = int(head[9:12])
    result.statuses[status] += 1
    result.latencies_s.append(time.perf_counter() - sent)
    if status != 200 and not result.first_error:
        result.first_error = body[:300]
    return not CLOSES.search(head)
