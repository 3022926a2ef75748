"""A stream in which one request has several answers, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from demi.server.errors import DeadlineError
from demi.server.grpc.stream import InferStream
from demi.server.memory_limit import MemoryLimit
from demi.server.settings import ServeSettings


class Call:
    """A client that sends some requests and then no more; it reads answers once `reads` is set."""

    def __init__(self, *requests: bytes) -> None:
        self._requests = list(requests)
        self.answers: list[bytes] = []
        self.reads = asyncio.Event()

    async def read(self) -> object:
        """Return the next request, then the end."""
        return self._requests.pop(0) if self._requests else None

    async def write(self, data: bytes) -> None:
        """Take an answer."""
        await self.reads.wait()
        self.answers.append(data)


class Pieces:
    """Answers a request with as many pieces as it asks for, or with its bytes."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = False

    async def reply(self, data: bytes, *_: object) -> bytes | AsyncGenerator[bytes, None]:
        """Return the answer, or several."""
        return self._pieces(int(data)) if data.isdigit() else data

    async def _pieces(self, count: int) -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(count):
                self.made += 1
                await asyncio.sleep(0)
                yield b"piece"
        finally:
            self.closed = True


def stream(call: Call, pieces: Pieces, limit: MemoryLimit, timeout_s: float = 20) -> InferStream:
    """Return a stream of this call."""
    return InferStream(call, pieces.reply, limit, ServeSettings(client_timeout_s=timeout_s))


def test_pieces_let_later_requests_through():
    """All answers are written, and those to later requests do not wait for the last piece."""

    async def scene() -> list[bytes]:
        call = Call(b"50", b"first", b"second")
        call.reads.set()
        await stream(call, Pieces(), MemoryLimit(1 << 20)).run()
        return call.answers

    answers = asyncio.run(scene())
    others = [answer for answer in answers if answer != b"piece"]

    assert ([b"first", b"second"], 50) == (others, answers.count(b"piece"))
    assert b"piece" == answers[-1]


def test_no_piece_is_made_before_it_can_be_written():
    """A client that does not read holds up what it asked for; after the timeout the stream ends, and with it the pieces."""

    async def scene() -> Pieces:
        call, pieces, limit = Call(b"1000", b"1000"), Pieces(), MemoryLimit(1 << 20)
        running = asyncio.create_task(stream(call, pieces, limit, 0.2).run())
        await asyncio.sleep(0.4)
        assert 2 == pieces.made
        call.reads.set()
        with pytest.raises(DeadlineError, match="--client-timeout"):
            await running
        assert 1 == len(call.answers)
        return pieces

    assert asyncio.run(scene()).closed


def test_a_client_that_leaves_ends_its_pieces():
    """Its call is cancelled."""

    async def scene() -> Pieces:
        call, pieces = Call(b"1000"), Pieces()
        running = asyncio.create_task(stream(call, pieces, MemoryLimit(1 << 20)).run())
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0.01)
        return pieces

    assert asyncio.run(scene()).closed
