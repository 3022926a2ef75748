"""One request on its way through the batcher, and the slices of it that batches carry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from demi.server.scheduling.stacking import concatenate, cut
from demi.tensors import Feeds

Key = tuple[tuple[int, ...], ...]
"""The shapes of a request's inputs without their batch axis: requests of one key can share a run."""


@dataclass(slots=True, eq=False)
class Job:
    """Checked inputs that wait for their outputs, and the future of the caller who waits for them.

    `rows` counts along the batch axis, 1 where a request cannot be joined with others, and then `key` is None.
    The future belongs to the event loop's thread; `taken` and `ready`, how many rows batches have taken and answered,
    belong to the batcher, under its lock.
    """

    feeds: Feeds
    outputs: Sequence[str]
    rows: int = 1
    key: Key | None = None
    length: int = 1
    """How many elements of padded axes one of its rows has."""
    deadline_s: float | None = None
    """On the clock of `time.monotonic`; None is no limit."""
    future: asyncio.Future[Feeds] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    arrived_ns: int = field(default_factory=time.perf_counter_ns)
    taken: int = 0
    ready: int = 0
    counted: bool = True
    """Whether it is a request of its own to the statistics, and not a second run of one."""
    failed: bool = False
    queue_ns: int = 0
    compute_ns: int = 0
    """How long it waited and was computed, once it is answered; where several runs shared it, those of the last."""
    answers: list[tuple[int, Feeds]] = field(default_factory=list)
    outside: set[str] = field(default_factory=set)
    """Inputs with values beyond what calibration saw."""
    not_finite: set[str] = field(default_factory=set)
    """Outputs with NaN or infinite values."""

    @property
    def wanted(self) -> bool:
        """Whether someone still waits for it, and in time."""
        return not (self.failed or self.future.done() or self.late)

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline_s is not None and time.monotonic() >= self.deadline_s

    def take(self, rows: int) -> Part:
        """The next `rows` rows, or all that are left when they are fewer."""
        part = Part(self, self.taken, min(self.taken + rows, self.rows))
        self.taken = part.stop
        return part

    def put(self, part: Part, outputs: Feeds) -> bool:
        """Keep the outputs of one part; whether they are the last that were missing."""
        self.answers.append((part.start, outputs))
        self.ready += part.rows
        return self.ready == self.rows

    def join(self) -> Feeds:
        """The outputs of all parts, in the order of the rows."""
        if len(self.answers) == 1:
            return self.answers[0][1]
        return concatenate([outputs for _, outputs in sorted(self.answers, key=lambda answer: answer[0])])

    def resolve(self, result: Feeds | Exception) -> None:
        """Tell the caller, who may have left; on the event loop's thread."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows `start` to `stop` of a job: mostly all of them, else one slice of a request too large for one batch."""

    job: Job
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its job."""
        return self.rows == self.job.rows

    @property
    def feeds(self) -> Feeds:
        """Its inputs, without a copy."""
        return self.job.feeds if self.is_whole else cut(self.job.feeds, self.start, self.stop)
