"""What PyTorch says, and how much of it people see."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demi.errors import SourceError


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the screen; what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_or_tell(load: Callable[[], Any], path: Path) -> Any:
    """What `load` reads; a SourceError with PyTorch's first cause where it cannot."""
    try:
        return load()
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
