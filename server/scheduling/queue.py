"""Bounded queue of jobs in order of arrival, and the selection of the next batch."""

from __future__ import annotations

import time
from collections import deque

from demi.server.scheduling.job import Job, Key, Part

WASTE = 2
"""A padded batch has at most this many times the elements of its unpadded requests."""

SWEEP_S = 0.005
"""Shortest interval between two sweeps of a full queue, in seconds: abandoned jobs may hold their places that long."""


class Queue:
    """A bounded queue of jobs. Not thread-safe: the batcher that owns it guards it with its own lock.

    A batch starts with the oldest job and takes every other job with the same key that still fits. No job therefore
    waits behind more than the batches of jobs that came before it.
    """

    def __init__(self, max_jobs: int, max_rows: int) -> None:
        self._max_jobs = max_jobs
        self._max_rows = max_rows
        self._jobs: deque[Job] = deque()
        self._rows: dict[Key, int] = {}
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def has_room(self) -> bool:
        """Return whether one more job fits. Thread-safe."""
        return len(self._jobs) < self._max_jobs

    def make_room(self) -> bool:
        """Return whether one more job fits, after dropping abandoned jobs if the queue is full.

        A full queue is swept at most once per `SWEEP_S`: sweeping on every refusal would be too expensive.
        """
        if self.has_room:
            return True
        if (now := time.monotonic()) >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._sweep()
        return self.has_room

    def _sweep(self) -> None:
        jobs, self._jobs = self._jobs, deque()
        for job in jobs:
            if job.wanted:
                self._jobs.append(job)
            else:
                self._count(job.key, job.taken - job.rows)

    @property
    def has_full_batch(self) -> bool:
        """Return whether the next batch joins requests and cannot become larger by waiting."""
        key = self._jobs[0].key if self._jobs else None
        return key is not None and self._rows.get(key, 0) >= self._max_rows

    @property
    def may_grow(self) -> bool:
        """Return whether waiting can make the next batch larger."""
        return bool(self._jobs) and self._jobs[0].key is not None and not self.has_full_batch

    @property
    def oldest_ns(self) -> int:
        """Arrival of the oldest job, on the clock of `time.perf_counter_ns`."""
        return self._jobs[0].arrived_ns

    def add(self, job: Job) -> None:
        """Append a job."""
        self._jobs.append(job)
        self._count(job.key, job.rows)

    def clear(self) -> list[Job]:
        """Remove and return all jobs."""
        jobs = list(self._jobs)
        self._jobs.clear()
        self._rows.clear()
        return jobs

    def take(self) -> list[Part]:
        """Remove and return the next batch: at most `max_rows` rows of one key, or one job that cannot share a run.

        A job is split only if it alone is larger than a batch. Abandoned jobs are dropped. An empty list means that no
        job is left.
        """
        parts: list[Part] = []
        others: list[Job] = []
        room = self._max_rows
        longest = elements = 0
        while self._jobs and room > 0:
            job = self._jobs.popleft()
            rows = job.rows - job.taken
            if not job.wanted:
                self._count(job.key, -rows)
            elif job.key is None and not parts:
                parts.append(job.take(rows))
                break
            elif parts and (
                job.key != parts[0].job.key
                or rows > room
                or (self._max_rows - room + rows) * max(longest, job.length) > WASTE * (elements + rows * job.length)
            ):
                others.append(job)
            else:
                parts.append(job.take(room))
                rows = min(rows, room)
                room -= rows
                longest = max(longest, job.length)
                elements += rows * job.length
                self._count(job.key, -rows)
                if job.taken < job.rows:
                    others.append(job)
        self._jobs.extendleft(reversed(others))
        return parts

    def _count(self, key: Key | None, rows: int) -> None:
        if key is None:
            return
        self._rows[key] = self._rows.get(key, 0) + rows
        if self._rows[key] <= 0:
            del self._rows[key]
