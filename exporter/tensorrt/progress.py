"""Progress of a TensorRT build, and its cancellation, through an IProgressMonitor.

TensorRT reports nested phases from threads of its own. A build blocks its thread in native code, where Python cannot
handle Ctrl-C. So it runs on a second thread while the first waits, and the monitor's next answer cancels it.
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
    """A phase of the build: its parent phase, its number of steps and the number done."""

    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """The phases under way. Thread-safe: every method may be called from any thread."""

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._phases: dict[str, Phase] = {}
        self._share = 0.0

    def begin(self, name: str, parent: str | None, steps: int) -> None:
        """Record that a phase begins, inside another or at the top."""
        with self._lock:
            self._phases[name] = Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """Record that a step of a phase is done; return False to cancel the build."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._advance()
            return not self.cancelled

    def end(self, name: str) -> None:
        """Record that a phase has ended."""
        with self._lock:
            self._phases.pop(name, None)

    @property
    def share(self) -> float:
        """Return the fraction of the build that is done, from 0 to 1; never decreases."""
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
    """Return a TensorRT monitor that reports to `progress`; keep a reference to it until the build has ended."""

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


def run_interruptibly(work: Callable[[], T], progress: Progress, report: Report | None) -> T:
    """Run `work` on a second thread, report its progress from this one, and return its result or raise its error.

    Ctrl-C cancels the work; KeyboardInterrupt is raised after it has stopped.
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
        done = False
        while not done:
            thread.join(POLL_S)
            done = not thread.is_alive()
            if report is not None:
                report(progress.share)  # also after the end, however quick the work was
    except BaseException:
        progress.cancelled = True
        thread.join()
        raise
    if failure:
        raise failure[0]
    return result[0]
