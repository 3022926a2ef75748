"""Backend: one precision of a model, with its sessions, its batcher and its deadlines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from demi.runtime.base import Session
from demi.server.protocol.answer import Answer
from demi.server.protocol.signature import Signature
from demi.server.scheduling.batch import BatchPolicy, BatchRun
from demi.server.scheduling.batcher import Batcher
from demi.server.scheduling.deadlines import Deadlines, Gone
from demi.server.scheduling.inspection import Inspection
from demi.server.scheduling.job import Job
from demi.server.scheduling.padding import Padding
from demi.tensors import Feeds, check_feeds


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a backend's queue and runs."""

    max_queue: int
    """Requests that may wait."""
    max_delay_us: int = 0
    """Time that a batch that is not full waits for more requests, in microseconds."""
    stop_after_s: float = 0.0
    """Time that a run may go on after its last caller has left, in seconds; 0 sets no limit."""


class Backend:
    """Sessions that compute one precision of a model. Owns their batcher; used on the event loop's thread only.

    Inputs have the dtypes of the model's signature. If the sessions take another float width (the FP32 reference of a
    model with half inputs, or an emulated one), inputs are cast to theirs and outputs back to the signature's.
    """

    def __init__(
        self,
        name: str,
        precision: str,
        sessions: Sequence[Session],
        signature: Signature,
        limits: Limits,
        inspection: Inspection | None = None,
        observe: Callable[[BatchRun], None] | None = None,
    ) -> None:
        self.precision = precision
        self.sessions = tuple(sessions)
        padding = Padding(signature)
        self._signature = signature
        self._deadlines = Deadlines()
        self._padding = padding if signature.joins else None
        self._casts = [spec.dtype for spec in signature.inputs] != [spec.dtype for spec in sessions[0].inputs]
        self._narrows = [spec.dtype for spec in signature.outputs] != [spec.dtype for spec in sessions[0].outputs]
        policy = BatchPolicy(signature.max_batch_size or 1, limits.max_queue, limits.max_delay_us, limits.stop_after_s)
        self.batcher = Batcher(name, self.sessions, policy, padding, inspection, observe)

    async def infer(
        self,
        feeds: Feeds,
        outputs: Sequence[str],
        timeout_s: float,
        gone: Gone | None = None,
        *,
        counted: bool = True,
        refused: Callable[[int], None] | None = None,
    ) -> Answer:
        """Return the named outputs for checked inputs, within `timeout_s` seconds (0 sets no deadline).

        `counted` is False for the second run of a request that is already in the statistics. `refused` is called with
        the arrival time (`time.perf_counter_ns`) of a request that gets no answer. Raises as `Model.infer` does.
        """
        if self._casts:
            feeds = check_feeds(self.sessions[0].inputs, feeds, cast_floats=True)
        job = self._job(feeds, outputs, timeout_s, counted)
        try:
            self.batcher.submit(job)
            with self._deadlines.enforce(job, timeout_s, gone):
                values = await job.future
        except BaseException:  # cancellation included
            if refused:
                refused(job.arrived_ns)
            raise
        return Answer(
            self._narrowed(values) if self._narrows else values,
            self.precision,
            job.queue_ns,
            job.compute_ns,
            frozenset(job.not_finite),
            frozenset(job.outside),
        )

    def close(self) -> None:
        """Close the batcher; a run in progress completes."""
        self.batcher.close()

    def join(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for the batcher of a closed backend. Return whether it has ended."""
        return self.batcher.join(timeout_s)

    def _job(self, feeds: Feeds, outputs: Sequence[str], timeout_s: float, counted: bool) -> Job:
        deadline_s = time.monotonic() + timeout_s if timeout_s else None
        rows = rows_of(feeds) if self._padding else None
        if self._padding is None or rows is None:
            return Job(feeds, outputs, deadline_s=deadline_s, counted=counted)  # shares its run with no other request
        key, length = self._padding.key(feeds), self._padding.length(feeds)
        return Job(feeds, outputs, rows, key, length, deadline_s, counted=counted)

    def _narrowed(self, values: Feeds) -> Feeds:
        """Return the outputs in the signature's dtypes; values beyond the range of half become infinite."""
        with np.errstate(over="ignore"):
            return {
                name: array.astype(self._signature.output(name).dtype.numpy, copy=False)
                for name, array in values.items()
            }


def rows_of(feeds: Feeds) -> int | None:
    """Return the number of rows that all inputs have; None if they differ, which some models accept."""
    rows = {values.shape[0] for values in feeds.values()}
    return rows.pop() if len(rows) == 1 else None
