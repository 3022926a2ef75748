"""Output of a command: results to stdout, everything else (messages, progress) to stderr.

Colour follows NO_COLOR and whether the stream is a terminal; rich decides.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from demi.errors import DemiError
from demi.printable import printable, printable_json, printable_lines
from demi.processes.recorder import doing


class Console:
    """The two streams of a command. `verbose` adds traces and lets other packages' warnings through.

    Results go to the stdout of the moment of creation: what packages and the user's own code print while a command
    runs can then be redirected.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self._results = sys.stdout

    def note(self, text: str) -> None:
        """Write a message to stderr, in one line."""
        self._say(printable_lines(printable(text)))

    def warn(self, text: str) -> None:
        """Write a warning to stderr."""
        self.note(f"warning: {text}")

    def error(self, error: DemiError) -> None:
        """Write an error to stderr: what, where and what to do next; the traceback only with --verbose."""
        if self.verbose:
            self._say(printable_lines("".join(traceback.format_exception(error)).rstrip("\n")))
        self._say(f"error: {printable_lines(error.message, '  ')}")
        if error.where:
            self._say(f"  in {printable(error.where)}")
        if error.hint:
            self._say(f"hint: {printable_lines(error.hint, '  ')}")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def data(self, text: str) -> None:
        """Write a line of the result to stdout."""
        print(printable_lines(printable(text)), file=self._results, flush=True)

    def script(self, text: str) -> None:
        """Write a script of Demi's own to stdout as it is; nothing in it comes from a model or a client."""
        print(text, file=self._results, flush=True)

    def json(self, result: Any) -> None:
        """Write the result as one JSON document to stdout; infinities and NaN become null, as JSON has neither."""
        text = printable_json(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
        if not (getattr(self._results, "encoding", None) or "utf-8").lower().startswith("utf"):
            text = json.dumps(json.loads(text), indent=2)  # escapes characters that the stream cannot encode
        print(text, file=self._results, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table to stdout; columns but the first are right-aligned, unless their name ends with a space."""
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table

        table = Table(title=printable_lines(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            left = index == 0 or column.endswith(" ")
            table.add_column(column.strip(), justify="left" if left else "right", overflow="fold")
        for row in rows:
            table.add_row(*[printable(cell).replace("[", r"\[") for cell in row])
        # A pipe or a log has no width: do not fold tables there.
        width = None if self._results.isatty() else 160
        screen = RichConsole(file=self._results, width=width, highlight=False, soft_wrap=False)
        with screen.capture() as captured:
            screen.print(table)
        # Not printed by rich, which ends the process when the reader has gone.
        text = captured.get()
        if not self._results.isatty():  # a file or a log needs no padding
            text = "\n".join(line.rstrip() for line in text.split("\n"))
        print(text, end="", file=self._results, flush=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Callable[[float], None]]:
        """Show that a phase is running: a spinner on a terminal, elsewhere a line when it took over a second.

        Yield a callback that takes the fraction done, for phases that know it, and shows the remaining time.
        """
        from rich.console import Console as RichConsole

        started = time.perf_counter()
        with doing(name):
            if sys.stderr.isatty():
                with RichConsole(stderr=True).status(name) as status:
                    yield lambda share: status.update(f"{name}: {_left(share, time.perf_counter() - started)}")
            else:
                yield _Lines(self, name, started).report
        elapsed = time.perf_counter() - started
        if elapsed >= 1.0:
            self.note(f"{name}: {elapsed:.1f} s")

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep other packages' warnings and logs off the screen, unless --verbose."""
        if self.verbose:
            yield
            return
        previous = logging.root.manager.disable
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            try:
                yield
            finally:
                logging.disable(previous)


class _Lines:
    """Progress without a terminal: a line every `EVERY_S` seconds."""

    EVERY_S = 10.0

    def __init__(self, console: Console, name: str, started: float) -> None:
        self._console, self._name, self._started, self._last = console, name, started, started

    def report(self, share: float) -> None:
        """Write the fraction done, unless the last line is too recent."""
        now = time.perf_counter()
        if now - self._last >= self.EVERY_S:
            self._last = now
            self._console.note(f"{self._name}: {_left(share, now - self._started)}")


def _left(share: float, elapsed: float) -> str:
    """Return text such as `40%, about 12 s left`."""
    if share <= 0:
        return "0%"
    return f"{min(share, 1.0):.0%}, about {elapsed * max(1 / share - 1, 0):.0f} s left"


def mebibytes(count: int) -> str:
    """Format a number of bytes for people."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def significant(value: float) -> str:
    """Format a measured number with three significant digits."""
    return f"{value:.3g}"
