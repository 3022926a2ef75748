"""Runs of ONNX Runtime that can be stopped: it looks at a flag of theirs between two nodes, also inside a Loop."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from demi.errors import InferenceError, StoppedError
from demi.runtime.cuda.failures import failed_run


class Runs:
    """The runs of one session that are under way. Any thread may add one, and any other may stop them all."""

    def __init__(self) -> None:
        self._options: set[Any] = set()

    def under_way(self, options: Any) -> UnderWay:
        """For the length of a block, a run with these `RunOptions`."""
        return UnderWay(self._options, options)

    def stop(self) -> None:
        """Let every run end before its next node; it raises StoppedError then. A node that computes is not disturbed."""
        for options in list(self._options):
            options.terminate = True


class UnderWay:
    """One run, for the length of a block; a generator would take longer than the smallest models."""

    __slots__ = ("_all", "_options")

    def __init__(self, others: set[Any], options: Any) -> None:
        self._all = others
        self._options = options

    def __enter__(self) -> None:
        self._all.add(self._options)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._all.discard(self._options)


def failure_of(options: Any, text: str) -> InferenceError:
    """The error of a run that ended with these words of the runtime's: StoppedError where it was stopped."""
    if getattr(options, "terminate", False):
        return StoppedError("the run was stopped")
    return failed_run(text)
