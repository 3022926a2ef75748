"""A command in a process of its own, under the eyes of another: what dies without a word is named, and cleaned up after.

Native code below Python can end the process it runs in: a bad pointer, an instruction that the CPU lacks, memory that runs
out. So a command splits its process in two before anything native is loaded, which takes a millisecond. One half does the
work, and notes what it does (`demi.processes.recorder`). The other waits, passes signals on, and speaks when the first cannot.

What libraries write to the screen from below Python goes to a file without a name: it is no message of Demi's, but what a
process said last before it died is worth showing. With --verbose it goes to the screen.
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
"""A signal that comes so long after the first is another one, not the same on a second way."""
DONE = ["done"]
LEFT_ALONE_S = 30.0
"""What the working half gets to end in order when its watcher has been killed."""

ENDS = tuple(number for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if (number := getattr(signal, name, None)))
"""Signals by which somebody ends a command on purpose."""


def can_split() -> bool:
    """Whether this process can be split in two: it has one thread, and no library that could have more."""
    return hasattr(os, "fork") and threading.active_count() == 1 and "numpy" not in sys.modules


def split(console: Console) -> int | None:
    """None in the half that does the work; in the half that watches, the exit code of the command, once it has ended."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else a launcher that ignores it would take the exit code with it
    reads, writes = os.pipe()
    leash, hold = os.pipe()
    words = None if console.verbose else words_file()
    worker = os.fork()
    if worker == 0:
        os.close(reads)
        os.close(hold)
        recorder.record_to(writes)
        if words is not None:
            _set_apart(words)
        threading.Thread(target=_end_when_alone, args=(leash,), name="demi-leash", daemon=True).start()
        return None
    os.close(writes)
    os.close(leash)
    return Watcher(worker, reads, console, words).wait()


def done() -> None:
    """Note that the command has come to its end: a process that ends without this note was ended by something else."""
    recorder.note(*DONE)


class Watcher:
    """The half that waits for the other: owns its end of the pipe, and what may be left behind."""

    def __init__(self, worker: int, pipe: int, console: Console, words: IO[bytes] | None = None) -> None:
        self._worker, self._pipe, self._console, self._words = worker, pipe, console, words
        self._record = Record()
        self._asked: int | None = None
        """The first signal by which somebody ended the command, and when it came."""
        self._asked_at = 0.0
        self._hung: CrashError | None = None
        for number in ENDS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._pass_on)

    def wait(self) -> int:
        """The exit code of the command; what has gone wrong without a word is said here."""
        status = self._until_it_ends()
        if status >= 0 and DONE in self._record.answers:
            return status
        self._clean_up()
        number = self._asked or -status
        if number in ENDS and not self._hung:
            self._console.note(f"ended by {signal_name(number)}; nothing half-written was left behind")
            return 128 + number
        error = self._hung or died(status, self._record.doing, last_line(self._words) if self._words else "")
        self._console.error(error)
        return error.exit_code

    def _until_it_ends(self) -> int:
        """The exit code, or the negative number of the signal."""
        options, ended = os.WNOHANG, 0
        while not ended:
            if options and not self._read(POLL_S):
                options = 0  # it has closed its end, and is about to end
            ended, status = os.waitpid(self._worker, options)
            if (limit_s := self._record.overdue()) and not ended:
                self._hung = hung(limit_s, self._record.doing)
                os.kill(self._worker, signal.SIGKILL)
        while self._read(0) and select.select([self._pipe], [], [], 0)[0]:
            pass
        return os.waitstatus_to_exitcode(status)

    def _read(self, wait_s: float) -> bool:
        """Take what it has noted, and wait a while for more; False when there will be nothing more."""
        if select.select([self._pipe], [], [], wait_s)[0]:
            data = os.read(self._pipe, 65536)
            self._record.feed(data)
            return bool(data)
        return True

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Let the worker end in order; whoever asks a second time does not want to wait for that."""
        again = self._asked is not None and time.monotonic() - self._asked_at >= IMPATIENT_S
        if self._asked is None:
            self._asked, self._asked_at = number, time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._worker, signal.SIGKILL if again else number)

    def _clean_up(self) -> None:
        """Remove what the worker could not, and give a terminal back its cursor."""
        self._record.clean_up()
        if sys.stderr.isatty():
            print("\r\x1b[K\x1b[?25h", end="", file=sys.stderr, flush=True)


def _set_apart(words: IO[bytes]) -> None:
    """Let Python write to the screen as before, and everything below it to a file."""
    screen = os.dup(sys.stderr.fileno())
    encoding, errors = sys.stderr.encoding, sys.stderr.errors
    os.dup2(words.fileno(), sys.stderr.fileno())
    sys.stderr = open(screen, "w", 1, encoding=encoding, errors=errors)  # noqa: SIM115 - to the end of the process


def _end_when_alone(leash: int) -> NoReturn:
    """End this process, in order if it can, when the half that watches it is no more."""
    while os.read(leash, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LEFT_ALONE_S)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
