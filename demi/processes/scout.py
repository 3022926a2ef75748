"""A process that goes first: what may end it is done there before it is done here.

`python -m demi.processes.scout PIPE MODULE:FUNCTION` is that process: it calls the function with the arguments that come to it,
one call after the other, and notes when each is done. What the function returns or raises is of no interest, since the same
follows here; what counts is that the process is still there.
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
from demi.processes.recorder import Record

log = logging.getLogger("demi.runtime")

STARTED, DONE = ["started"], ["done"]
GRACE_S = 10.0
"""How much later than its limit a process ends itself, where nobody is left to end it."""


class Scout:
    """Calls `work`, "package.module:function", in a process of its own, which is started when it is first needed.

    A call that takes longer than `limit_s` seconds (0 is no limit), which the setting `limit` says, counts as hung. Owns
    the process. Any thread may send it ahead; one call is under way at a time.
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
        """Start the process, which needs a moment, without waiting for it."""
        with self._lock, contextlib.suppress(OSError):
            self._require_process()

    def go(self, *arguments: Any) -> None:
        """Make one call there; CrashError, which says how and at what, when the process dies of it or never ends.

        Where no process can be started at all, the log says so, and nothing is tried.
        """
        call = pickle.dumps((self._limit_s, arguments))
        with self._lock:
            if self._closed:
                return
            try:
                process = self._require_process()
            except OSError as error:
                log.warning("no process can be started to try things out in: %s", error)
                return
            try:
                self._send(process, call)
                if crash := self._wait(process):
                    raise crash
            except BaseException:  # Ctrl-C too: whatever it still does is of no interest any more
                self._let_go()
                raise

    def close(self) -> None:
        """End the process, whatever it does; a call that is under way fails."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
        with self._lock:
            self._let_go()

    def _require_process(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._let_go()
        if not sys.executable:
            raise OSError("this interpreter does not know where it is")
        if self._process is None:
            self._record = Record()
            self._pipe, writes = os.pipe()
            self._words = words_file()
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "demi.processes.scout", str(writes), self._work],
                    stdin=subprocess.PIPE,
                    stdout=self._words or subprocess.DEVNULL,
                    stderr=self._words or subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": paths},
                    pass_fds=[writes],
                    start_new_session=True,  # Ctrl-C is for this process, which then closes that one
                )
            finally:
                os.close(writes)
        return self._process

    def _send(self, process: subprocess.Popen[bytes], call: bytes) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died already, which is found out next
            process.stdin.write(call)
            process.stdin.flush()

    def _wait(self, process: subprocess.Popen[bytes]) -> CrashError | None:
        """Wait until the call is done; the error that says why it never will be."""
        record, until = self._record, time.monotonic() + (self._limit_s or float("inf"))
        ready = select.poll()  # which minds no large numbers, as a server with many connections has
        ready.register(self._pipe, select.POLLIN)
        while DONE not in record.answers:
            left_s = min(until - time.monotonic(), 3600.0)
            if left_s <= 0:
                process.kill()
                process.wait()
                return hung(self._limit_s, record.doing or "trying it out", self._limit)
            if ready.poll(left_s * 1000):
                data = os.read(self._pipe, 65536)
                if not data:
                    return self._died(process.wait())
                record.feed(data)
        record.answers.remove(DONE)
        return None

    def _died(self, status: int) -> CrashError | None:
        """The error for its death; None where it never lived. The log has its last words, if it had any."""
        last = last_line(self._words) if self._words else ""
        if STARTED not in self._record.answers:
            log.warning("no process can be started to try things out in: %s", last or f"it ended with {status}")
            return None
        if last:
            log.warning("a process in which something was tried out died, saying: %s", last)  # which may hold paths
        return died(status, self._record.doing)

    def _let_go(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):  # what it has not read
            process.stdin.close()  # type: ignore[union-attr]
        os.close(self._pipe)
        if self._words:
            self._words.close()


def serve(pipe: int, work: str) -> None:
    """Make the calls that come on stdin until there are no more."""
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
    """Let the system have what the last call took: who sent it does the same now, and may need all there is."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
