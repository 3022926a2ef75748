"""Run `demi serve` as a process on a free port."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

START_S = 120
"""A server that ends is seen at once; CUDA's libraries are gigabytes to read the first time."""
FLAGS = ("--port", "0", "--threads", "1", "--runtime", "onnxruntime", "--precision", "half")
"""Serve half precision even if it is not faster: these tests are about serving, not about speed."""
STARTED = re.compile(r"serving url=(\S+) grpc=(\S+) ")


class ServerProcess:
    """A running server process: its addresses, its log, and how it ends."""

    def __init__(self, models: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "demi", "serve", str(models), *FLAGS, *flags]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DEMI_")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
        self.flags = flags
        self.lines: list[str] = []
        self._listening = threading.Event()
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        assert self._listening.wait(START_S), "the server did not start:\n" + self.log
        self.url, self.grpc = next(match.groups() for line in self.lines if (match := STARTED.search(line)))

    @property
    def log(self) -> str:
        """Everything written to stderr so far."""
        return "".join(self.lines)

    def said(self, words: str) -> bool:
        """Return whether stderr contains these words, now or within a moment: its output arrives with a delay."""
        stop = time.monotonic() + 5
        while words not in self.log and time.monotonic() < stop:
            time.sleep(0.01)
        return words in self.log

    def stop(self, signal: int) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(signal)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(20)
        self._reader.join(5)
        return code

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.append(line)
            if STARTED.search(line):
                self._listening.set()
        self._listening.set()  # it ended: nobody should wait any longer


@contextlib.contextmanager
def serving(models: Path, *flags: str) -> Iterator[ServerProcess]:
    """Start a server for the length of a block."""
    server = ServerProcess(models, *flags)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()


def run_serve(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `demi serve` until it ends, for a server that cannot start."""
    command = [sys.executable, "-m", "demi", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **environ})
