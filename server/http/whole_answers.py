"""Answers of uvicorn in one write: the head waits for the body.

uvicorn writes the head of an answer first. A proxy passes it on at once, and can then no longer repeat the request if the server
dies before it has written the body: on a busy machine, milliseconds later.
"""

from __future__ import annotations

import importlib
from typing import Any

PROTOCOLS = ("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl")
"""The modules that answer requests; the second one needs the package httptools."""


def write_answers_whole() -> None:
    """Let all servers of uvicorn in this process write the head of an answer together with the beginning of its body."""
    for name in PROTOCOLS:
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            continue
        if not hasattr(module.RequestResponseCycle, "_waiting_head"):
            module.RequestResponseCycle = _whole(module.RequestResponseCycle)


def _whole(cycle: Any) -> Any:
    class WholeCycle(cycle):  # type: ignore[misc]  # the class is known at run time
        """One request and its answer, whose head waits for the body."""

        transport: Any
        _waiting_head: Any = None

        async def send(self, message: Any) -> None:
            """Send a message of the application; the first one waits for the second."""
            if message["type"] == "http.response.start" and not self.response_started:
                self._waiting_head = message
                return
            if self._waiting_head is None:
                await super().send(message)
                return
            head, self._waiting_head = self._waiting_head, None
            transport = self.transport
            self.transport = joined = _Joined(transport)
            try:
                await super().send(head)
                await super().send(message)
            finally:
                joined.flush()
                self.transport = transport

    return WholeCycle


class _Joined:
    """A transport whose writes become one, at the latest when it is closed."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._written.append(data)

    def flush(self) -> None:
        data, self._written = b"".join(self._written), []
        if data:
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
