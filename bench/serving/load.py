"""Closed-loop load generator: each connection sends its next request once it has its answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import grpc
import uvloop

from bench.serving.servers import Server
from bench.serving.turns import Turn

T = TypeVar("T")

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
INFER = "/inference.GRPCInferenceService/ModelInfer"


def measure_http(server: Server, requests: Sequence[bytes], connections: int, seconds: float) -> Turn:
    """Measure one turn over HTTP, with `connections` connections that each cycle through `requests`."""

    async def run() -> Turn:
        loop = asyncio.get_running_loop()
        before, started = server.cpu_s(), time.perf_counter()
        found = []
        for first in range(connections):
            start = first % len(requests)
            order = [*requests[start:], *requests[:start]]
            _, one = await loop.create_connection(lambda order=order: Connection(order), server.host, server.port)  # type: ignore[misc]
            found.append(one)
        await asyncio.sleep(seconds)
        elapsed, used = time.perf_counter() - started, server.cpu_s() - before
        for connection in found:
            connection.stop()
        await asyncio.sleep(0.05)
        return Turn(
            [latency for connection in found for latency in connection.latencies_s],
            elapsed,
            used,
            sum(connection.errors + connection.broken for connection in found),
            refused_s=[latency for connection in found for latency in connection.refused_s],
        )

    return _run(run())


def measure_grpc(server: Server, request: bytes, connections: int, seconds: float) -> Turn:
    """Measure one turn of unary gRPC calls over `connections` channels, with serialized messages."""

    async def run() -> Turn:
        address = f"{server.host}:{server.grpc_port}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        latencies: list[float] = []
        errors = 0

        async def ask(channel: grpc.aio.Channel) -> None:
            nonlocal errors
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
            while True:
                sent = time.perf_counter()
                try:
                    await call(request)
                except grpc.aio.AioRpcError:
                    errors += 1
                latencies.append(time.perf_counter() - sent)

        channels = [grpc.aio.insecure_channel(address, options) for _ in range(connections)]
        before, started = server.cpu_s(), time.perf_counter()
        tasks = [asyncio.create_task(ask(channel)) for channel in channels]
        await asyncio.sleep(seconds)
        elapsed, used, count = time.perf_counter() - started, server.cpu_s() - before, len(latencies)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in channels:
            await channel.close()
        return Turn(latencies[:count], elapsed, used, errors)

    # grpc.aio keeps one poller per process, which outlives an event loop only if that is asyncio's own.
    return asyncio.run(run())


class HttpClient(asyncio.Protocol):
    """A keep-alive connection that passes on each complete answer."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.stopped = False
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport, whose class is uvloop's own."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Collect an answer, and pass it on once it is complete."""
        self._received = self._received + data if self._received else data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = LENGTH.search(self._received, 0, end)
        if length is None or len(self._received) < end + 4 + int(length[1]):
            return
        answer, self._received = self._received, b""
        self.answered(answer[9:12], answer[end + 4 :])

    def answered(self, status: bytes, body: bytes) -> None:
        """Handle one answer: three digits of status, and the body."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop sending and close the connection."""
        self.stopped = True
        if self.transport:
            self.transport.close()


class Connection(HttpClient):
    """A connection that cycles through its requests and stores the latency of each."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        super().__init__()
        self.latencies_s: list[float] = []
        self.refused_s: list[float] = []
        self.errors = 0
        self.broken = False
        self._requests = requests
        self._next = 0
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        super().connection_made(transport)
        self._send()

    def answered(self, status: bytes, body: bytes) -> None:
        """Store the latency and send the next request."""
        latency_s = time.perf_counter() - self._sent_at
        if status == b"200":
            self.latencies_s.append(latency_s)
        elif status == b"503":
            self.refused_s.append(latency_s)
        else:
            self.errors += 1
        if not self.stopped:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        """Mark a connection that the server closed too early."""
        self.broken = not self.stopped

    def _send(self) -> None:
        assert self.transport is not None
        self._sent_at = time.perf_counter()
        self.transport.write(self._requests[self._next])
        self._next = (self._next + 1) % len(self._requests)


def _run(work: Coroutine[Any, Any, T]) -> T:
    with suppress(ImportError):
        return uvloop.run(work)
    return asyncio.run(work)
