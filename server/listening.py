"""Sockets to listen on, and the limit of open files that connections need."""

from __future__ import annotations

import resource
import socket

from demi.errors import InputError

_BACKLOG = 2048
_OTHER_FILES = 512
"""Files that a server may have open besides connections."""
_HINT = "choose another address with --host and --port; --port 0 chooses a free one"


def bind(host: str, port: int, hint: str = _HINT) -> socket.socket:
    """Return a socket bound to the address but not listening yet; InputError, with the hint, if that fails.

    Bind before loading models, so that a port in use is reported at once and not after a minute of loading.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _no_address(host, port, error, hint) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _no_address(host, port, error, hint) from error
    return listener


def listen(listener: socket.socket) -> None:
    """Start to listen on a bound socket; InputError if another process has taken the address meanwhile."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _no_address(host, port, error, _HINT) from error
    listener.setblocking(False)


def allow_files(connections: int) -> None:
    """Raise this process's limit of open files to what `connections` over HTTP, and as many over gRPC, need.

    0 connections means no limit. The common soft limit of 1024 would be reached first, and then even health checks fail.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OTHER_FILES if connections else hard
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft not in (resource.RLIM_INFINITY, -1) and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _no_address(host: str, port: int, error: OSError, hint: str) -> InputError:
    return InputError(f"cannot listen on {host}:{port}: {error.strerror or error}", hint=hint)
