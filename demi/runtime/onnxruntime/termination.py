"""Stop runs of ONNX Runtime: it checks a flag of the run between two nodes, also inside a Loop."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from demi.errors import InferenceError, StoppedError
from demi.runtime.cuda.failures import run_failure


class Runs:
    """The current runs of one session. Thread-safe: any thread may add a run, and any thread may stop all of them."""

    def __init__(self) -> None:
        self._options: set[Any] = set()

    def under_way(self, options: Any) -> UnderWay:
        """Return a context that registers a run with these `RunOptions`."""
        return UnderWay(self._options, options)

    def stop(self) -> None:
        """Stop every run before its next node; it then raises StoppedError. A running node is not interrupted."""
        for options in list(self._options):
            options.terminate = True


class UnderWay:
    """Context of one run. A class, because a generator would take longer than the smallest models."""

    __slots__ = ("_all", "_options")

    def __init__(self, others: set[Any], options: Any) -> None:
        self._all = others
        self._options = options

    def __enter__(self) -> None:
        self._all.add(self._options)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._all.discard(self._options)


def failure_of(options: Any, text: str) -> InferenceError:
    """Return the error for a run that failed with this message of the runtime: StoppedError if the run was stopped."""
    if getattr(options, "terminate", False):
        return StoppedError("the run was stopped")
    return run_failure(text)
