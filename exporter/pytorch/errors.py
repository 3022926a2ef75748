"""What PyTorch says, and how much of it people see."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TextIO

from demi.errors import SourceError


class _OtherThreads:
    """The screen without what this thread prints: a failed export prints its whole graph, a spinner turns elsewhere."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        """Let others' text through; with --verbose, where warnings are wanted, this thread's as well."""
        if threading.get_ident() == self._thread and not logging.root.isEnabledFor(logging.WARNING):
            return len(text)
        return self._screen.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._screen, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the screen; what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with redirect_stderr(_OtherThreads(sys.stderr)):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_or_raise(load: Callable[[], Any], path: Path) -> Any:
    """What `load` reads; a SourceError with PyTorch's first cause where it cannot."""
    try:
        return load()
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            f"PyTorch cannot read the file: {cause(error)}",
            where=str(path),
            hint="the file may be truncated, or written by a newer PyTorch",
        ) from error


def cause(error: BaseException) -> str:
    """The first cause of an exporter's error in one line: the end of the chain says what really went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_lines(error, 1)


def first_lines(error: BaseException, count: int = 3) -> str:
    """The first lines of an error that say something, in one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count]) or type(error).__name__
