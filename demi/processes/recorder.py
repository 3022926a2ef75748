"""What a process is doing, noted where its death does not take it along: on a pipe to a process that watches it.

Native code can end a process without a word. Whoever watches reads here what was going on then, how long it may take at
most, and what would be left behind. A process that nobody watches notes nothing.
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
    """From now on this process notes what it does on that pipe."""
    global _pipe
    _pipe = descriptor


def is_watched() -> bool:
    """Whether another process sees to it that the death of this one is no mystery."""
    return _pipe is not None


@contextlib.contextmanager
def doing(what: str, limit_s: float = 0.0) -> Iterator[None]:
    """Note what is done while the block runs: "opening the model"; beyond a limit of seconds, if any, it counts as hung."""
    note("begin", what, limit_s)
    try:
        yield
    finally:
        note("end")


@contextlib.contextmanager
def owning(draft: Path) -> Iterator[None]:
    """Note that a folder or a file must not outlive the block, nor this process."""
    note("made", str(draft.absolute()))
    try:
        yield
    finally:
        note("gone", str(draft.absolute()))


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Note that a folder that is made for the block is to go after it, or with this process, while it is empty."""
    note("made empty", str(folder.absolute()))
    try:
        yield
    finally:
        note("gone", str(folder.absolute()))


def note(*words: str | float) -> None:
    """Write one note, if this process is watched; nothing is raised when the other end has gone."""
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_pipe, f"{json.dumps(words)}\n".encode())


class Record:
    """The notes of one process, as far as they have come: what it does, since when, and the drafts it owns."""

    def __init__(self) -> None:
        self.drafts: set[str] = set()
        self.if_empty: set[str] = set()
        """Folders that it made for others, and that nobody needs while they are empty."""
        self.answers: list[Any] = []
        """What else it has noted: whatever the two have agreed on."""
        self._rest = b""
        self._under_way: list[tuple[str, float, float]] = []

    @property
    def doing(self) -> str:
        """What it does, the whole and then the part: "writing the bundle, opening the model"; empty between steps."""
        return ", ".join(what for what, _, _ in self._under_way)

    def clean_up(self) -> None:
        """Remove what the process, which is no more, would have removed."""
        for draft in self.drafts:
            if os.path.isdir(draft):
                shutil.rmtree(draft, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(draft)
        for folder in sorted(self.if_empty, key=len, reverse=True):  # the innermost first
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def feed(self, data: bytes) -> None:
        """Take bytes from the pipe, whole notes or parts of them."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def overdue(self) -> float:
        """The limit, in seconds, that what it does has passed; 0 where none has."""
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
