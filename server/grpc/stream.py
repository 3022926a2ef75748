"""Answer one request stream, with limits on requests in flight, on their bytes, and on unread answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from demi.server.errors import DeadlineError
from demi.server.grpc.calls import Call, CallerLeftError, write
from demi.server.memory_limit import UNCOUNTED_BYTES, MemoryLimit, Reservation
from demi.server.settings import BYTES_PER_SECOND, ServeSettings

MAX_PENDING = 64
"""Requests of one stream in flight at once; further ones stay unread on the wire."""

Pieces = AsyncGenerator[bytes, None]
"""Several answers to one request, each made when it is asked for."""

Reply = Callable[[bytes, Call, Reservation], Awaitable[bytes | Pieces]]
"""Answers the bytes of one request, with an error message if it fails."""


@dataclass(slots=True)
class PendingRequest:
    """A request of a stream in flight: its task, the memory reserved for request and answer, and their size in bytes."""

    reservation: Reservation
    size: int
    task: asyncio.Task[bytes | Pieces] | None = None


class InferStream:
    """Answers the requests of a stream in order, while later ones are computed already.

    Several answers to one request begin in its turn, and are written as they come, between those to later requests.
    The next request is read once requests in flight and unread answers are fewer than MAX_PENDING and together smaller than
    the largest body. For a client that does not read its answers in time, everything but the answer being written is dropped.
    """

    def __init__(self, call: Call, reply: Reply, memory_limit: MemoryLimit, settings: ServeSettings) -> None:
        self._call = call
        self._reply = reply
        self._memory_limit = memory_limit
        self._most_bytes = settings.max_body_bytes
        self._timeout_s = settings.client_timeout_s
        self._pending: asyncio.Queue[PendingRequest | None] = asyncio.Queue()
        self._open = 0
        self._bytes = 0
        self._has_room = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._is_late = False
        self._one_write = asyncio.Lock()
        self._writer: asyncio.Task[Any] | None = None
        self._in_pieces: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Read and answer until the client has sent all requests and read all answers; DeadlineError if it reads too slowly."""
        self._reading = asyncio.create_task(self._read())
        pending: PendingRequest | None = None
        try:
            while pending := await self._pending.get():
                assert pending.task is not None  # set before it was queued
                answer = await pending.task
                if isinstance(answer, bytes):
                    await self._write(answer)
                    self._end(pending)
                else:
                    self._begin(pending, answer)
                pending = None
            await asyncio.gather(*self._in_pieces, return_exceptions=True)
            self._check_late()
            await self._reading
        finally:
            if pending:
                self._drop(pending)
            self._writer = None
            self._stop()

    async def _read(self) -> None:
        try:
            while isinstance(data := await self._next(), bytes):
                pending = PendingRequest(self._memory_limit.reserve(), 0)
                self._open += 1
                self._grow(pending, len(data))
                pending.task = asyncio.create_task(self._answer(data, pending))
                self._pending.put_nowait(pending)
                del data  # the task owns it; this reference would keep one request too many in memory
        finally:
            self._pending.put_nowait(None)

    async def _next(self) -> object:
        while self._open >= MAX_PENDING or self._bytes >= self._most_bytes:
            self._has_room.clear()
            await self._has_room.wait()
        return await self._call.read()

    async def _answer(self, data: bytes, pending: PendingRequest) -> bytes | Pieces:
        answer = await self._reply(data, self._call, pending.reservation)
        pending.reservation.release()
        if not isinstance(answer, bytes):
            self._grow(pending, -pending.size)
            return answer
        if len(answer) > UNCOUNTED_BYTES:
            pending.reservation.add(len(answer))
        self._grow(pending, len(answer) - pending.size)
        return answer

    def _begin(self, pending: PendingRequest, pieces: Pieces) -> None:
        """Start to write several answers to one request, beside the answers to later ones."""

        async def write_all() -> None:
            with contextlib.suppress(CallerLeftError, DeadlineError):  # `run` ends the call
                async with contextlib.aclosing(pieces):
                    async for answer in pieces:
                        await self._write(answer)
            self._end(pending)

        task = asyncio.create_task(write_all())
        self._in_pieces.add(task)
        task.add_done_callback(self._in_pieces.discard)

    async def _write(self, answer: bytes) -> None:
        async with self._one_write:
            self._check_late()
            self._writer = asyncio.current_task()
            try:
                await self._write_in_time(answer)
            finally:
                self._writer = None

    async def _write_in_time(self, answer: bytes) -> None:
        timer = None
        if self._timeout_s:
            limit_s = self._timeout_s + len(answer) / BYTES_PER_SECOND
            timer = asyncio.get_running_loop().call_later(limit_s, self._give_up)
        try:
            await write(self._call, answer)
        finally:
            if timer:
                timer.cancel()
        self._check_late()

    def _check_late(self) -> None:
        """Raise DeadlineError if the client has not read an answer in time."""
        if self._is_late:
            raise DeadlineError("the client did not read its answers in time; the limit is --client-timeout")

    def _give_up(self) -> None:
        """Drop everything but the answer that gRPC is writing: that one cannot be interrupted."""
        self._is_late = True
        self._stop()

    def _stop(self) -> None:
        if self._reading:
            self._reading.cancel()
        for task in self._in_pieces:
            if task is not self._writer:
                task.cancel()
        while not self._pending.empty():
            if pending := self._pending.get_nowait():
                self._drop(pending)

    def _grow(self, pending: PendingRequest, by: int) -> None:
        pending.size += by
        self._bytes += by

    def _end(self, pending: PendingRequest) -> None:
        pending.reservation.release()
        self._open -= 1
        self._grow(pending, -pending.size)
        self._has_room.set()

    def _drop(self, pending: PendingRequest) -> None:
        """Cancel a request whose answer nobody reads; its memory is released when its task has ended."""
        assert pending.task is not None
        pending.task.cancel()
        pending.task.add_done_callback(lambda task: self._forget(task, pending.reservation))

    @staticmethod
    def _forget(task: asyncio.Task[bytes | Pieces], reservation: Reservation) -> None:
        reservation.release()
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it as never retrieved
