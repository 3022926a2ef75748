"""Helpers of the attacks: open sockets, a server's memory, and health probes meanwhile."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx

from tests.server.processes import ServerProcess

SOON_S = 2.0
"""Time limit of a probe; an answer takes a tenth of it, but tests may run in parallel on one machine."""
MIB = 2**20
T = TypeVar("T")


def port_of(address: str) -> int:
    """Return the port at the end of an address or a URL."""
    return int(address.rsplit(":", 1)[1])


@contextlib.contextmanager
def held_connections(address: str, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open this many connections, and send some bytes on each."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(stack.enter_context(socket.create_connection(("127.0.0.1", port_of(address)), 10)))
            with contextlib.suppress(ConnectionError):
                found[-1].sendall(first)
        yield found


def is_closed(connection: socket.socket, within_s: float = 10.0) -> bool:
    """Return whether the server closes a connection, whatever it sends before."""
    connection.settimeout(within_s)
    with contextlib.suppress(ConnectionError):
        try:
            while connection.recv(65536):
                pass
        except TimeoutError:
            return False
    return True


def peak_bytes(server: ServerProcess) -> int:
    """Return the server's peak memory in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def is_live(server: ServerProcess) -> bool:
    """Return whether a probe on a new connection is answered with 200 in time."""
    started = time.monotonic()
    status = httpx.get(server.url + "/v2/health/live", timeout=10 * SOON_S).status_code
    return 200 == status and time.monotonic() - started < SOON_S


def probed(server: ServerProcess, attack: Callable[[], T]) -> T:
    """Run an attack with probes during and after it, and return its result."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(attack)
        while not running.done():
            assert is_live(server)
            time.sleep(0.02)
    assert is_live(server)
    return running.result()
