"""How far a TensorRT build is, and how it is stopped: an IProgressMonitor.

TensorRT tells of phases, some within others, from threads of its own. A build holds its thread in native code, where
Python sees no Ctrl-C: so the build runs beside the thread that waits, and is stopped by the monitor's next answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from demi.progress import Report

POLL_S = 0.2

T = TypeVar("T")


@dataclass(slots=True)
class Phase:
    """A part of the build: its parent, how many steps it has and how many are done."""

    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """The phases that are under way. Any thread may tell it, and ask it."""

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._phases: dict[str, Phase] = {}
        self._share = 0.0

    def begin(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, inside another or by itself."""
        with self._lock:
            self._phases[name] = Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """A step of a phase is done; whether to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._advance()
            return not self.cancelled

    def end(self, name: str) -> None:
        """A phase is over."""
        with self._lock:
            self._phases.pop(name, None)

    @property
    def share(self) -> float:
        """The part of the build that is done, from 0 to 1; it never falls."""
        with self._lock:
            self._advance()
            return self._share

    def _advance(self) -> None:
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        now = max((self._share_of(name) for name in roots), default=0.0)
        self._share = max(self._share, min(now, 1.0))

    def _share_of(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._share_of(child) for child, found in self._phases.items() if found.parent == name]
        return min((phase.done + sum(inner)) / phase.steps, 1.0)


def make_monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's own kind of monitor, which tells `progress`; keep it until the build has ended."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.begin(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.end(phase_name)

    return Monitor()


def watched(work: Callable[[], T], progress: Progress, report: Report | None) -> T:
    """What `work` returns, run beside this thread, which reports how far it is.

    On Ctrl-C the work is told to stop, and has stopped when KeyboardInterrupt leaves here.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="demi-build")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_S)
            if report is not None:
                report(progress.share)
    except BaseException:
        progress.cancelled = True
        thread.join()
        raise
    if failure:
        raise failure[0]
    return result[0]
