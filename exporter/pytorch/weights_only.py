"""Limit what PyTorch may load from an untrusted file: tensors only, unless the user trusts the file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from demi.errors import SourceError

FORCED, FORBIDDEN = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""PyTorch's switches, which override the arguments of its functions; it refuses both at once."""

_LOCK = threading.RLock()


@contextmanager
def weights_only() -> Iterator[None]:
    """Make PyTorch unpickle only tensors and plain values, anywhere in the process, while the block runs."""
    with _LOCK:
        before = {name: os.environ.pop(name, None) for name in (FORCED, FORBIDDEN)}
        os.environ[FORCED] = "1"
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def untrusted(what: str, path: Path) -> SourceError:
    """Return the error for a file that could run code: the part that could, and what to do."""
    return SourceError(
        f"the file could run code when it is loaded: {what}",
        where=str(path),
        hint="if you trust where it comes from, add --trust-pickle; better, export the model again with tensors as its only inputs, and without custom objects",
    )


def require_harmless(look: Callable[[Path], str | None], path: Path) -> None:
    """Raise SourceError where `look` finds unsafe content in a file, or cannot read it."""
    try:
        found = look(path)
    except Exception as error:  # a damaged archive makes the readers raise almost anything
        raise SourceError(
            f"PyTorch cannot read the file: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=str(path),
            hint="the file may be truncated, or written by a newer PyTorch",
        ) from error
    if found:
        raise untrusted(found, path)
