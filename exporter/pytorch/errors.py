"""Silence PyTorch's exporter and turn its errors into SourceError."""

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
    """A stream that drops output of this thread: a failed export prints its whole graph. Other threads may draw progress."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        """Write text of other threads; with --verbose, where warnings are shown, this thread's as well."""
        if threading.get_ident() == self._thread and not logging.root.isEnabledFor(logging.WARNING):
            return len(text)
        return self._screen.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._screen, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's output to logs and standard error; errors are raised."""
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
    """Return the result of `load`; raise SourceError with PyTorch's first cause where it fails."""
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
    """Return the first cause of an exporter's error in one line: the end of the chain names the real problem."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_lines(error, 1)


def first_lines(error: BaseException, count: int = 3) -> str:
    """Return the first non-empty lines of an error as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count]) or type(error).__name__
