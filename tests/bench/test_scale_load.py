"""The load generator of `bench.scale`: what it counts as answered, failed and lost."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import pytest

from bench.scale.goals import Goal
from bench.scale.load import Result, http_request, under_load

GOOD = b"HTTP/1.1 200 OK\r\ninference-header-content-length: 999\r\ncontent-length: 2\r\n\r\nok"
LAST = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
FAILED = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy"
REQUEST = http_request("/", b"body", 0)


def load(answer: Callable[[int], bytes]) -> Result:
    """Return the result of a short load; the server answers request number N with `answer(N)`, then closes if it says so."""
    ready, ports, stop = threading.Event(), [], threading.Event()

    async def serve() -> None:
        numbers = iter(range(10**6))

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(len(REQUEST)):
                data = answer(next(numbers))
                writer.write(data)
                if not data or b"close" in data:
                    break
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0, family=socket.AF_INET)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.01)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    with under_load(REQUEST, ports[0], 2) as result:
        time.sleep(0.2)
    stop.set()
    thread.join()
    return result


def test_whole_answers_are_counted_by_status():
    """The length is that of the body, and not of the JSON in it."""
    result = load(lambda number: FAILED if number == 3 else GOOD)

    assert 1 == result.statuses[503] == result.failed
    assert b"busy" == result.first_error
    assert 3 < result.statuses[200]


def test_a_request_without_a_whole_answer_is_lost():
    """The connection ends before the answer, or in the middle of it."""
    result = load(lambda number: {2: b"", 4: GOOD[:-1] + b"close"}.get(number, GOOD))

    assert 1 <= len(result.lost) <= 2
    assert len(result.lost) == result.failed


def test_a_connection_that_is_announced_to_close_loses_nothing():
    """The client opens another one."""
    result = load(lambda number: LAST)

    assert ([], 0) == (result.lost, result.failed)
    assert 3 < result.answered


def test_a_fault_of_the_generator_is_raised():
    """It does not look like a server that loses nothing."""
    with pytest.raises(ValueError, match="invalid literal"):
        load(lambda number: b"nonsense without a status\r\n\r\n")


@pytest.mark.parametrize(
    ("found", "at_least", "met"), [(0.9, True, True), (0.8, True, False), (0.9, False, True), (1.0, False, False)]
)
def test_goals_are_met_or_not(found, at_least, met):
    """At least, or at most."""
    assert met == Goal("share", found, 0.9, at_least).met
