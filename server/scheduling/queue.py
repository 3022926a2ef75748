"""The requests that wait for one model, in the order of their arrival, and the choice of the next batch among them."""

from __future__ import annotations

import time
from collections import deque

from demi.server.scheduling.job import Job, Key, Part

WASTE = 2
"""A padded batch has at most this many times the elements of its requests."""


SWEEP_S = 0.005
"""How long a full queue may hold requests that nobody waits for."""


class Waiting:
    """A bounded queue of jobs. It has no lock of its own: it belongs to a batcher, and is touched under its lock.

    A batch starts with the oldest job and takes every other one of the same key that still fits, so that nobody
    waits behind more than the batches of those who came before.
    """

    def __init__(self, max_jobs: int, max_rows: int) -> None:
        self._max_jobs = max_jobs
        self._max_rows = max_rows
        self._jobs: deque[Job] = deque()
        self._rows: dict[Key, int] = {}
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def make_room(self) -> bool:
        """Whether one more job may wait; those that nobody waits for are dropped when that makes the room.

        A full queue is looked through once in `SWEEP_S`: for every request that it refuses would be the dearest way to
        say no.
        """
        if len(self._jobs) >= self._max_jobs and (now := time.monotonic()) >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._sweep()
        return len(self._jobs) < self._max_jobs

    def _sweep(self) -> None:
        jobs, self._jobs = self._jobs, deque()
        for job in jobs:
            if job.wanted:
                self._jobs.append(job)
            else:
                self._count(job.key, job.taken - job.rows)

    @property
    def has_full_batch(self) -> bool:
        """Whether the next batch joins requests and could not become any larger by waiting."""
        key = self._jobs[0].key if self._jobs else None
        return key is not None and self._rows.get(key, 0) >= self._max_rows

    @property
    def may_grow(self) -> bool:
        """Whether waiting could make the next batch larger."""
        return bool(self._jobs) and self._jobs[0].key is not None and not self.has_full_batch

    @property
    def oldest_ns(self) -> int:
        """When the oldest job came, on the clock of `time.perf_counter_ns`."""
        return self._jobs[0].arrived_ns

    def add(self, job: Job) -> None:
        """Let a job wait."""
        self._jobs.append(job)
        self._count(job.key, job.rows)

    def clear(self) -> list[Job]:
        """Drop every job, and return them."""
        jobs = list(self._jobs)
        self._jobs.clear()
        self._rows.clear()
        return jobs

    def take(self) -> list[Part]:
        """The next batch: at most `max_rows` rows of one key, or one job that cannot share a run; empty for none.

        Jobs are split only where one alone is larger than a batch. Those that nobody waits for are passed over.
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
                room -= parts[-1].rows
                longest = max(longest, job.length)
                elements += parts[-1].rows * job.length
                self._count(job.key, -parts[-1].rows)
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
