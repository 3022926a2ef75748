"""Jobs (one request in the batcher each) and parts (the slices of a job that batches carry)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from demi.server.scheduling.stacking import concatenate, cut
from demi.tensors import Feeds

Key = tuple[tuple[int, ...], ...]
"""Shapes of a request's inputs without the batch axis. Requests with the same key can share a run."""


class Job(msgspec.Struct, eq=False):
    """One request in the batcher: checked inputs, and the future of the caller who awaits the outputs.

    `rows` counts along the batch axis; it is 1, and `key` None, if the request cannot be joined with others. The future
    belongs to the event loop's thread. `taken` and `ready`, the rows taken and answered by batches, belong to the
    batcher and are guarded by its lock.
    """

    feeds: Feeds
    outputs: Sequence[str]
    rows: int = 1
    key: Key | None = None
    length: int = 1
    """Elements along the padded axes of one row."""
    deadline_s: float | None = None
    """On the clock of `time.monotonic`; None sets no deadline."""
    future: asyncio.Future[Feeds] = msgspec.field(default_factory=lambda: asyncio.get_running_loop().create_future())
    arrived_ns: int = msgspec.field(default_factory=time.perf_counter_ns)
    taken: int = 0
    ready: int = 0
    counted: bool = True
    """True if statistics count it as a request: False for the second run of one (guard, shadow)."""
    failed: bool = False
    queue_ns: int = 0
    compute_ns: int = 0
    """Queue and compute time, set once it is answered; those of the last run if several shared it."""
    answers: list[tuple[int, Feeds]] = msgspec.field(default_factory=list)
    outside: set[str] = msgspec.field(default_factory=set)
    """Inputs with values outside the calibrated range."""
    not_finite: set[str] = msgspec.field(default_factory=set)
    """Outputs with NaN or infinite values."""

    @property
    def wanted(self) -> bool:
        """Return whether a caller still waits for it and its deadline has not passed."""
        if self.failed or self.future.done():
            return False
        return self.deadline_s is None or time.monotonic() < self.deadline_s

    def take(self, rows: int) -> Part:
        """Return the next part, of at most `rows` rows."""
        part = Part(self, self.taken, min(self.taken + rows, self.rows))
        self.taken = part.stop
        return part

    def put(self, part: Part, outputs: Feeds) -> bool:
        """Store the outputs of one part. Return whether the job is complete."""
        self.answers.append((part.start, outputs))
        self.ready += part.rows
        return self.ready == self.rows

    def join(self) -> Feeds:
        """Return the outputs of all parts, joined in the order of the rows."""
        if len(self.answers) == 1:
            return self.answers[0][1]
        return concatenate([outputs for _, outputs in sorted(self.answers, key=lambda answer: answer[0])])

    def resolve(self, result: Feeds | Exception) -> None:
        """Resolve the caller's future, if it still waits. Call on the event loop's thread only."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Part(msgspec.Struct, frozen=True, eq=False):
    """Rows `start` to `stop` of a job: usually all of them, else one slice of a request larger than a batch."""

    job: Job
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Return whether it covers the whole job."""
        return self.stop - self.start == self.job.rows

    @property
    def feeds(self) -> Feeds:
        """Its rows of the job's inputs, without a copy."""
        return self.job.feeds if self.is_whole else cut(self.job.feeds, self.start, self.stop)
