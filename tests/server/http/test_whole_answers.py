"""The head and the body of an answer arrive in one write, whichever parser uvicorn uses."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from demi.server.http.whole_answers import PROTOCOLS, write_answers_whole

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n"


class Transport(asyncio.Transport):
    """Records writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed_after: int | None = None

    def write(self, data: Any) -> None:
        assert self.closed_after is None
        if data:  # h11 ends an answer with nothing
            self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed_after = len(self.writes)

    def is_closing(self) -> bool:
        return self.closed_after is not None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


@pytest.fixture(params=PROTOCOLS, ids=["h11", "httptools"])
def module(request, monkeypatch):
    """Return each of uvicorn's modules, as it is afterwards once more."""
    for name in PROTOCOLS:
        found = importlib.import_module(name)
        monkeypatch.setattr(found, "RequestResponseCycle", found.RequestResponseCycle)
    return importlib.import_module(request.param)


def written(module: Any, *bodies: bytes, headers: bytes = b"", fails: bool = False) -> Transport:
    """Return what is written for one request whose answer has these parts."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = str(sum(map(len, bodies))).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        if fails:
            raise RuntimeError("on purpose")
        for number, body in enumerate(bodies, 1):
            await send({"type": "http.response.body", "body": body, "more_body": number < len(bodies)})

    async def scene() -> Transport:
        config = uvicorn.Config(app, lifespan="off", log_level="critical")
        config.load()
        protocol_type = getattr(module, "H11Protocol", None) or module.HttpToolsProtocol
        protocol = protocol_type(config, ServerState(), {})
        transport = Transport()
        protocol.connection_made(transport)
        protocol.data_received(REQUEST + headers + b"\r\n")
        for _ in range(20):
            await asyncio.sleep(0)
        if protocol.timeout_keep_alive_task:
            protocol.timeout_keep_alive_task.cancel()
        return transport

    return asyncio.run(scene())


def test_uvicorn_writes_the_head_by_itself(module):
    """Which is why this exists."""
    assert 2 == len(written(module, b"answer").writes)


def test_head_and_body_are_one_write(module):
    """And nothing is written twice, also if it is asked for twice."""
    write_answers_whole()
    write_answers_whole()
    (whole,) = written(module, b"answer").writes

    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert whole.endswith(b"\r\n\r\nanswer")


def test_the_rest_of_a_long_answer_follows(module):
    """The head goes with the first part."""
    write_answers_whole()
    first, second = written(module, b"be", b"gun").writes

    assert (True, b"gun") == (first.endswith(b"\r\n\r\nbe"), second)


def test_a_connection_is_closed_after_its_last_answer(module):
    """Not before it is written."""
    write_answers_whole()
    found = written(module, b"answer", headers=b"connection: close\r\n")

    assert (1, 1) == (len(found.writes), found.closed_after)


def test_an_application_that_fails_after_the_head_is_an_error(module):
    """The head was not sent yet, so the client learns of it."""
    write_answers_whole()
    found = written(module, fails=True)

    assert b"".join(found.writes).startswith(b"HTTP/1.1 500 ")
