"""One stream: how far requests are read ahead of the answers, in numbers and in bytes, and how long an answer may stay unread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from demi.server.errors import DeadlineError
from demi.server.grpc.calls import Call, write
from demi.server.memory_limit import SMALLEST, InFlight, Lease
from demi.server.settings import BYTES_PER_SECOND, ServeSettings

AHEAD = 64
"""How many requests of one stream are under way at once; the next ones wait on the wire."""

Reply = Callable[[bytes, Call, Lease], Awaitable[bytes]]
"""The answer to the bytes of one request, an error where it comes to that."""


@dataclass(slots=True)
class Turn:
    """One request of a stream, and its answer: the task that makes it, the room for both, and how many bytes they are."""

    lease: Lease
    size: int
    task: asyncio.Task[bytes] | None = None


class Conversation:
    """Answers the requests of a stream in their order, while later ones are under way already.

    The next request is read once those under way, and the answers that wait for the client, are fewer than AHEAD and
    smaller than the largest body. Of a client that does not read its answers in time, no more is kept than the one that is
    on its way.
    """

    def __init__(self, call: Call, reply: Reply, in_flight: InFlight, settings: ServeSettings) -> None:
        self._call = call
        self._reply = reply
        self._in_flight = in_flight
        self._most_bytes = settings.max_body_bytes
        self._timeout_s = settings.client_timeout_s
        self._turns: asyncio.Queue[Turn | None] = asyncio.Queue()
        self._open = 0
        self._bytes = 0
        self._room = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._is_late = False

    async def run(self) -> None:
        """Read and answer until the client has said and heard everything; DeadlineError where it did not listen."""
        self._reading = asyncio.create_task(self._read())
        turn: Turn | None = None
        try:
            while turn := await self._turns.get():
                assert turn.task is not None  # set before it was queued
                await self._write(await turn.task)
                self._end(turn)
            await self._reading
        finally:
            if turn:
                self._drop(turn)
            self._stop()

    async def _read(self) -> None:
        try:
            while isinstance(data := await self._next(), bytes):
                turn = Turn(self._in_flight.lease(), 0)
                self._open += 1
                self._grow(turn, len(data))
                turn.task = asyncio.create_task(self._answer(data, turn))
                self._turns.put_nowait(turn)
                del data  # the task has it: what is read ahead is counted, and this would be one more
        finally:
            self._turns.put_nowait(None)

    async def _next(self) -> object:
        while self._open >= AHEAD or self._bytes >= self._most_bytes:
            self._room.clear()
            await self._room.wait()
        return await self._call.read()

    async def _answer(self, data: bytes, turn: Turn) -> bytes:
        answer = await self._reply(data, self._call, turn.lease)
        turn.lease.end()
        if len(answer) > SMALLEST:
            turn.lease.add(len(answer))
        self._grow(turn, len(answer) - turn.size)
        return answer

    async def _write(self, answer: bytes) -> None:
        timer = None
        if self._timeout_s:
            limit_s = self._timeout_s + len(answer) / BYTES_PER_SECOND
            timer = asyncio.get_running_loop().call_later(limit_s, self._give_up)
        try:
            await write(self._call, answer)
        finally:
            if timer:
                timer.cancel()
        if self._is_late:
            raise DeadlineError("the client did not read its answers in time; the limit is --client-timeout")

    def _give_up(self) -> None:
        """Let go of everything but the answer that gRPC has already: nothing overtakes that, not even the end."""
        self._is_late = True
        self._stop()

    def _stop(self) -> None:
        if self._reading:
            self._reading.cancel()
        while not self._turns.empty():
            if turn := self._turns.get_nowait():
                self._drop(turn)

    def _grow(self, turn: Turn, by: int) -> None:
        turn.size += by
        self._bytes += by

    def _end(self, turn: Turn) -> None:
        turn.lease.end()
        self._open -= 1
        self._grow(turn, -turn.size)
        self._room.set()

    def _drop(self, turn: Turn) -> None:
        """Let go of a turn whose answer nobody hears: its task ends first, and takes no more room then."""
        assert turn.task is not None
        turn.task.cancel()
        turn.task.add_done_callback(lambda task: self._forget(task, turn.lease))

    @staticmethod
    def _forget(task: asyncio.Task[bytes], lease: Lease) -> None:
        lease.end()
        if not task.cancelled():
            task.exception()  # looked at: nobody else will
