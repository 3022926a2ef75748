"""Supervision of a command that runs in a process of its own: crashes are reported and cleaned up after.

Native code can end the process it runs in: a bad pointer, an instruction that the CPU lacks, memory that runs out. So a
command forks before anything native is loaded, which takes a millisecond. The worker does the work and records what it is
doing (`demi.processes.recorder`). The supervisor waits, forwards signals, and reports a crash of the worker.

What native libraries write to stderr goes to an unnamed file: it is not a message of Demi's, but its last line before a
crash is worth showing. With --verbose it goes to the screen.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import IO, NoReturn

from demi.cli.console import Console
from demi.errors import CrashError
from demi.processes import recorder
from demi.processes.crash import died, hung, last_line, signal_name, words_file
from demi.processes.recorder import Record

POLL_S = 0.5
IMPATIENT_S = 1.0
"""A signal this long after the first is a second one, not the first one arriving by another route."""
DONE = ["done"]
LEFT_ALONE_S = 30.0
"""Time for the worker to clean up when its supervisor has been killed."""

ENDS = tuple(number for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if (number := getattr(signal, name, None)))
"""Signals that end a command on purpose."""


def can_split() -> bool:
    """Return whether this process can fork safely: it has one thread, and no library that could have more."""
    return hasattr(os, "fork") and threading.active_count() == 1 and "numpy" not in sys.modules


def split(console: Console) -> int | None:
    """Return None in the worker; in the supervisor, the exit code of the command once it has ended."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a launcher that ignores it would lose the exit code
    reads, writes = os.pipe()
    leash, hold = os.pipe()
    words = None if console.verbose else words_file()
    worker = os.fork()
    if worker == 0:
        os.close(reads)
        os.close(hold)
        recorder.record_to(writes)
        if words is not None:
            _divert_native_output(words)
        threading.Thread(target=_end_when_orphaned, args=(leash,), name="demi-leash", daemon=True).start()
        return None
    os.close(writes)
    os.close(leash)
    return Supervisor(worker, reads, console, words).wait()


def done() -> None:
    """Record that the command has ended by itself: without this record, something else ended the process."""
    recorder.note(*DONE)


class Supervisor:
    """The process that waits for the worker; owns the reading end of the pipe and the cleaning up."""

    def __init__(self, worker: int, pipe: int, console: Console, words: IO[bytes] | None = None) -> None:
        self._worker, self._pipe, self._console, self._words = worker, pipe, console, words
        self._record = Record()
        self._asked: int | None = None
        """The first signal that ended the command on purpose."""
        self._asked_at = 0.0
        self._hung: CrashError | None = None
        for number in ENDS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._forward)

    def wait(self) -> int:
        """Return the exit code of the command; report a crash that the worker could not report itself."""
        status = self._until_it_ends()
        if status >= 0 and DONE in self._record.answers:
            return status
        self._clean_up()
        number = self._asked or -status
        if number in ENDS and not self._hung:
            self._console.note(f"terminated by {signal_name(number)}; no partial files were left behind")
            return 128 + number
        error = self._hung or died(status, self._record.doing, last_line(self._words) if self._words else "")
        self._console.error(error)
        return error.exit_code

    def _until_it_ends(self) -> int:
        """Return the exit code, or the negative number of the signal."""
        options, ended = os.WNOHANG, 0
        while not ended:
            if options and not self._read(POLL_S):
                options = 0  # it has closed its end and is about to exit
            ended, status = os.waitpid(self._worker, options)
            if (limit_s := self._record.overdue()) and not ended:
                self._hung = hung(limit_s, self._record.doing)
                os.kill(self._worker, signal.SIGKILL)
        while self._read(0) and select.select([self._pipe], [], [], 0)[0]:
            pass
        return os.waitstatus_to_exitcode(status)

    def _read(self, wait_s: float) -> bool:
        """Wait for the worker's next records and take them; return False when there will be no more."""
        if select.select([self._pipe], [], [], wait_s)[0]:
            data = os.read(self._pipe, 65536)
            self._record.feed(data)
            return bool(data)
        return True

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Forward a signal, so that the worker can clean up; kill it at the second."""
        again = self._asked is not None and time.monotonic() - self._asked_at >= IMPATIENT_S
        if self._asked is None:
            self._asked, self._asked_at = number, time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._worker, signal.SIGKILL if again else number)

    def _clean_up(self) -> None:
        """Remove what the worker could not, and show the terminal's cursor again."""
        self._record.clean_up()
        if sys.stderr.isatty():
            print("\r\x1b[K\x1b[?25h", end="", file=sys.stderr, flush=True)


def _divert_native_output(words: IO[bytes]) -> None:
    """Let Python write to the screen as before, and native libraries to a file."""
    screen = os.dup(sys.stderr.fileno())
    encoding, errors = sys.stderr.encoding, sys.stderr.errors
    os.dup2(words.fileno(), sys.stderr.fileno())
    sys.stderr = open(screen, "w", 1, encoding=encoding, errors=errors)  # noqa: SIM115 - to the end of the process


def _end_when_orphaned(leash: int) -> NoReturn:
    """End this process when its supervisor is gone: by SIGTERM, and by SIGKILL if that is not enough."""
    while os.read(leash, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LEFT_ALONE_S)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
