"""Record of what a process does, written to a pipe, so that another process can report and clean up after a crash.

Native code can end a process without a message. The supervising process reads from the pipe what was being done, its
time limit, and the files that would be left behind. A process without a supervisor records nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_pipe: int | None = None


def record_to(descriptor: int) -> None:
    """Record to this pipe from now on."""
    global _pipe
    _pipe = descriptor


def is_watched() -> bool:
    """Return whether another process supervises this one and reports its crashes."""
    return _pipe is not None


@contextlib.contextmanager
def doing(what: str, limit_s: float = 0.0) -> Iterator[None]:
    """Record what the block does, such as "opening the model"; after `limit_s` seconds, unless 0, it counts as hung."""
    note("begin", what, limit_s)
    try:
        yield
    finally:
        note("end")


@contextlib.contextmanager
def owning(draft: Path) -> Iterator[None]:
    """Record that a folder or file must be removed after the block, or after a crash of this process."""
    note("made", str(draft.absolute()))
    try:
        yield
    finally:
        note("gone", str(draft.absolute()))


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Record that a folder created for the block must be removed after it, or after a crash, if it is empty."""
    note("made empty", str(folder.absolute()))
    try:
        yield
    finally:
        note("gone", str(folder.absolute()))


def note(*words: str | float) -> None:
    """Write one note if this process is supervised; a closed pipe is ignored."""
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_pipe, f"{json.dumps(words)}\n".encode())


class Record:
    """Notes received from one process: what it does, since when, and the drafts it owns."""

    def __init__(self) -> None:
        self.drafts: set[str] = set()
        self.if_empty: set[str] = set()
        """Folders that it created, to be removed if they are empty."""
        self.answers: list[Any] = []
        """All other notes, whose meaning the two processes agree on."""
        self._rest = b""
        self._under_way: list[tuple[str, float, float]] = []

    @property
    def doing(self) -> str:
        """Return what it does, outer step first: "writing the bundle, opening the model"; empty between steps."""
        return ", ".join(what for what, _, _ in self._under_way)

    def clean_up(self) -> None:
        """Remove the files and folders that the crashed process left behind."""
        for draft in self.drafts:
            if os.path.isdir(draft):
                shutil.rmtree(draft, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(draft)
        for folder in sorted(self.if_empty, key=len, reverse=True):  # the innermost first
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def feed(self, data: bytes) -> None:
        """Process bytes from the pipe, which may hold parts of notes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def overdue(self) -> float:
        """Return the time limit in seconds that a current step has exceeded; 0 if there is none."""
        now = time.monotonic()
        return next((limit for _, since, limit in self._under_way if limit and now - since > limit), 0.0)

    def _take(self, words: list[Any]) -> None:
        match words:
            case ["begin", what, limit]:
                self._under_way.append((what, time.monotonic(), limit))
            case ["end"]:
                del self._under_way[-1:]
            case ["made", draft]:
                self.drafts.add(draft)
            case ["made empty", folder]:
                self.if_empty.add(folder)
            case ["gone", folder]:
                self.drafts.discard(folder)
                self.if_empty.discard(folder)
            case _:
                self.answers.append(words)
