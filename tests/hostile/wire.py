"""Plain sockets for attacks: exact bytes are sent, and every response is returned."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from tests.server.processes import ServerProcess


@dataclass(frozen=True)
class Heard:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes


def port_of(server: ServerProcess) -> int:
    """Return the server's HTTP port."""
    return int(server.url.rsplit(":", 1)[1])


def exchange(server: ServerProcess, *pieces: bytes, timeout_s: float = 10.0) -> list[Heard]:
    """Send these pieces and return the responses until the server closes: the last request should ask for that."""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            with contextlib.suppress(ConnectionError):
                connection.sendall(piece)
        received = b""
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while chunk := connection.recv(65536):
                received += chunk
    return answers_in(received)


def answers_in(received: bytes) -> list[Heard]:
    """Return the complete responses in these bytes."""
    found: list[Heard] = []
    while b"\r\n\r\n" in received:
        head, _, rest = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "0"))
        if len(rest) < size:
            break
        found.append(Heard(int(first.split()[1]), headers, rest[:size]))
        received = rest[size:]
    return found


def request(
    method: str = "GET",
    path: str = "/v2/health/live",
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    host: str | None = "localhost",
    last: bool = True,
) -> bytes:
    """Return a request as bytes; the `last` one of a connection asks to close it."""
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"Host: {host}"] if host is not None else []
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    lines += ["Connection: close"] if last else []
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
