"""What the attacks share: sockets held open, the memory of a server, and whether it answers probes meanwhile."""

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
"""A probe is answered within a tenth of this; many share the machine that the tests run on."""
MIB = 2**20
T = TypeVar("T")


def port_of(address: str) -> int:
    """The port at the end of an address or a URL."""
    return int(address.rsplit(":", 1)[1])


@contextlib.contextmanager
def held(address: str, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections, each of which has sent some bytes."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(stack.enter_context(socket.create_connection(("127.0.0.1", port_of(address)), 10)))
            with contextlib.suppress(ConnectionError):
                found[-1].sendall(first)
        yield found


def is_closed(connection: socket.socket, within_s: float = 10.0) -> bool:
    """Return whether the server closes a connection; what it sends before does not matter."""
    connection.settimeout(within_s)
    with contextlib.suppress(ConnectionError):
        try:
            while connection.recv(65536):
                pass
        except TimeoutError:
            return False
    return True


def peak_bytes(server: ServerProcess) -> int:
    """The most memory that a server has held so far."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def is_live(server: ServerProcess) -> bool:
    """Return whether a new connection's probe is answered with 200, and soon."""
    started = time.monotonic()
    status = httpx.get(server.url + "/v2/health/live", timeout=10 * SOON_S).status_code
    return 200 == status and time.monotonic() - started < SOON_S


def probed(server: ServerProcess, attack: Callable[[], T]) -> T:
    """What an attack returns; probes are answered while it goes on, and after it."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(attack)
        while not running.done():
            assert is_live(server)
            time.sleep(0.02)
    assert is_live(server)
    return running.result()
