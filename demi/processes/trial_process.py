"""Trial process: a call that might crash is made in another process first, and only then in this one.

`python -m demi.processes.trial_process PIPE MODULE:FUNCTION` is that process. It reads arguments from stdin, calls the
function with them, one call after the other, and notes on the pipe when each is done. Results and exceptions are
ignored, since the same call follows in this process; only a crash or a hang counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any, Self

from demi.errors import CrashError
from demi.processes import recorder
from demi.processes.crash import LIMIT, died, hung, last_line, words_file
from demi.processes.import_path import same_imports
from demi.processes.recorder import Record

log = logging.getLogger("demi.runtime")

STARTED, DONE = ["started"], ["done"]
GRACE_S = 10.0
"""Seconds after its limit at which a trial process ends itself, in case its parent is gone."""


class TrialProcess:
    """Calls `work`, "package.module:function", in a separate process, which is started when it is first needed.

    A call that takes longer than `limit_s` seconds (0 for no limit) counts as hung; `limit` is the name of the setting,
    for the error. Owns the process. Thread-safe; calls are made one at a time.
    """

    def __init__(self, work: str, limit_s: float = 0.0, limit: str = LIMIT) -> None:
        self._work, self._limit_s, self._limit = work, limit_s, limit
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._record = Record()
        self._pipe = -1
        self._words: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process without waiting for it."""
        with self._lock, contextlib.suppress(OSError):
            self._require_process()

    def call(self, *arguments: Any) -> None:
        """Make one call in the trial process. Raises CrashError when the process crashes or hangs.

        Where no process can be started, a warning is logged and nothing is tried.
        """
        call = pickle.dumps((self._limit_s, arguments))
        with self._lock:
            if self._closed:
                return
            try:
                process = self._require_process()
            except OSError as error:
                log.warning("the trial process cannot be started, so models are opened without a trial: %s", error)
                return
            try:
                self._send(process, call)
                if crash := self._wait(process):
                    raise crash
            except BaseException:  # Ctrl-C too: the process may still be busy with the call
                self._end()
                raise

    def close(self) -> None:
        """Kill the process; a call in progress fails."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
        with self._lock:
            self._end()

    def _require_process(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if not sys.executable:
            raise OSError("the path of the Python interpreter is unknown (sys.executable is empty)")
        if self._process is None:
            self._record = Record()
            self._pipe, writes = os.pipe()
            self._words = words_file()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "demi.processes.trial_process", str(writes), self._work],
                    stdin=subprocess.PIPE,
                    stdout=self._words or subprocess.DEVNULL,
                    stderr=self._words or subprocess.DEVNULL,
                    env=same_imports(),
                    pass_fds=[writes],
                    start_new_session=True,  # Ctrl-C must reach this process only, which then closes the other
                )
            finally:
                os.close(writes)
        return self._process

    def _send(self, process: subprocess.Popen[bytes], call: bytes) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died already, which `_wait` reports
            process.stdin.write(call)
            process.stdin.flush()

    def _wait(self, process: subprocess.Popen[bytes]) -> CrashError | None:
        """Wait until the call is done. Return None, or the error for a crash or a hang."""
        record, until = self._record, time.monotonic() + (self._limit_s or float("inf"))
        ready = select.poll()  # unlike select(), it takes descriptors above 1,023
        ready.register(self._pipe, select.POLLIN)
        while DONE not in record.answers:
            left_s = min(until - time.monotonic(), 3600.0)
            if left_s <= 0:
                process.kill()
                process.wait()
                return hung(self._limit_s, record.doing or "running a trial", self._limit)
            if ready.poll(left_s * 1000):
                data = os.read(self._pipe, 65536)
                if not data:
                    return self._died(process.wait())
                record.feed(data)
        record.answers.remove(DONE)
        return None

    def _died(self, status: int) -> CrashError | None:
        """Return the error for its crash, and log the last line that it wrote; None where it never started."""
        last = last_line(self._words) if self._words else ""
        if STARTED not in self._record.answers:
            log.warning(
                "the trial process cannot be started, so models are opened without a trial: %s",
                last or f"it ended with {status}",
            )
            return None
        if last:  # it may hold paths, which must not reach clients
            log.warning("a trial process crashed; its last output was: %s", last)
        return died(status, self._record.doing)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):  # closing flushes what it has not read
            process.stdin.close()  # type: ignore[union-attr]
        os.close(self._pipe)
        if self._words:
            self._words.close()


def serve(pipe: int, work: str) -> None:
    """Make the calls that arrive on stdin until it is closed."""
    recorder.record_to(pipe)
    recorder.note(*STARTED)
    module, _, name = work.partition(":")
    function = None
    with contextlib.suppress(Exception), recorder.doing("importing the runtime"):
        function = getattr(importlib.import_module(module), name)
    while True:
        try:
            limit_s, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if limit_s:
            signal.setitimer(signal.ITIMER_REAL, limit_s + GRACE_S)
        with contextlib.suppress(Exception):
            if function is not None:
                function(*arguments)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _give_memory_back()
        recorder.note(*DONE)


def _give_memory_back() -> None:
    """Return the memory of the last call to the system: the parent makes the same call next, and may need all of it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # C libraries other than glibc
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
