"""What a file from a stranger may do while PyTorch reads it: nothing but become a model, unless the user says otherwise."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from demi.errors import SourceError

FORCED, FORBIDDEN = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""PyTorch's own switches, which rule over what its functions ask for; both at once are refused."""

_LOCK = threading.RLock()


@contextmanager
def weights_only() -> Iterator[None]:
    """While the block runs, PyTorch unpickles nothing but tensors and plain values, wherever in it that is."""
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
    """The error for a file that could run code: what in it could, and how to go on."""
    return SourceError(
        f"the file could run code when it is loaded: {what}",
        where=str(path),
        hint="if you trust where it comes from, add --trust-pickle; better, export the model again with inputs that are tensors alone, and without custom objects",
    )


def require_harmless(look: Callable[[Path], str | None], path: Path) -> None:
    """Raise SourceError for what `look` finds in a file; a file that it cannot read is refused by PyTorch's reader too."""
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
