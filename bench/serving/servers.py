"""Server processes: start, CPU time and memory, and end with all of their child processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
STARTED = re.compile(r"serving url=(\S+) grpc=(\S+)")
SLOW_START_S = 120


@dataclass
class Server:
    """A running server: the leader of its own process session, and its addresses."""

    process: subprocess.Popen[str]
    host: str
    port: int
    grpc_port: int = 0

    def cpu_s(self) -> float:
        """Return the CPU seconds that its processes have used so far."""
        return sum(int(fields[11]) + int(fields[12]) for fields in self._stats()) / TICKS_PER_SECOND

    def rss_mib(self) -> float:
        """Return the resident memory of its processes, in MiB; shared memory counts once per process."""
        return sum(int(fields[21]) for fields in self._stats()) * PAGE_MIB

    def _stats(self) -> Iterator[list[str]]:
        """Yield the fields of `/proc/PID/stat` after the name, for every process of its session."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == self.process.pid:
                    yield fields


@contextlib.contextmanager
def serving(models: Path, threads: int, *flags: str) -> Iterator[Server]:
    """Run `demi serve` until the block ends, on free loopback ports; with gRPC only if the flags enable it."""
    grpc = [] if "--grpc-port" in flags or "--grpc" in flags else ["--no-grpc"]
    command = [sys.executable, "-m", "demi", "serve", str(models), "--port", "0", "--threads", str(threads)]
    with session_of([*command, *grpc, *flags], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        match = next((match for line in process.stderr if (match := STARTED.search(line))), None)
        if match is None:
            raise SystemExit("the server did not start")
        address = urlsplit(match[1])
        grpc_port = int(match[2].rpartition(":")[2]) if ":" in match[2] else 0
        yield Server(process, str(address.hostname), int(address.port or 0), grpc_port)


@contextlib.contextmanager
def peer_serving(
    command: Sequence[str], port: int, ready: str, grpc_port: int = 0, environ: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run another server until the block ends. It has started once the path `ready` answers 200."""
    quiet = subprocess.DEVNULL
    with session_of(command, environ, stdout=quiet, stderr=quiet) as process:
        give_up = time.monotonic() + SLOW_START_S
        while not _answers(port, ready):
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            time.sleep(0.1)
        yield Server(process, "127.0.0.1", port, grpc_port)


@contextlib.contextmanager
def session_of(
    command: Sequence[str],
    environ: Mapping[str, str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run a process in a session of its own until the block ends, then end the whole session."""
    process = subprocess.Popen(
        command,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
        env={**os.environ, **(environ or {})},
    )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_ports(count: int) -> list[int]:
    """Return free ports of the loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(port: int, path: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.settimeout(2)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(15).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
