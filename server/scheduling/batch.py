"""Batches: the policy they form by, and the record of one run."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from demi.server.scheduling.job import Part


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Limits of a batcher: rows in one run, requests in the queue, and waiting times."""

    max_rows: int
    max_queue: int
    max_delay_us: int = 0
    """Time that a batch that is not full waits for more requests, in microseconds."""
    stop_after_s: float = 0.0
    """Time that an abandoned run may go on, in seconds; 0 sets no limit."""


class BatchRun(msgspec.Struct):
    """Record of one batch. Times are nanoseconds of `time.perf_counter_ns`, 0 if not reached yet."""

    parts: list[Part]
    taken_ns: int
    device: str = ""
    """The device that it runs on, such as `cuda:0`."""
    stacked_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    answered_ns: int = 0
    runs: int = 0
    """Number of session runs: more than one only if the batch failed and its requests were run one by one."""
    on_event_loop: bool = False
    """True if it runs on the event loop's own thread."""
    abandoned_ns: int = 0
    """Time since which no caller waits for it; 0 while one does."""
    stop_logged: bool = False
    """True if the log already reports that it is being stopped."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum([part.stop - part.start for part in self.parts])

    @property
    def input_ns(self) -> int:
        """Time spent joining the inputs."""
        return self.stacked_ns - self.taken_ns

    @property
    def infer_ns(self) -> int:
        """Time spent in the session."""
        return self.ended_ns - self.started_ns

    @property
    def output_ns(self) -> int:
        """Time spent splitting the outputs."""
        return self.answered_ns - self.ended_ns

    @property
    def compute_ns(self) -> int:
        """Time spent joining, running and splitting."""
        return self.stacked_ns - self.taken_ns + self.answered_ns - self.started_ns

    @property
    def began_ns(self) -> int:
        """End of the requests' queue time, which includes the prepared batch's wait for the device."""
        return self.started_ns - self.input_ns
