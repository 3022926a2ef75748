"""What a batch is: the policy it forms by, and the record of what it did and when."""

from __future__ import annotations

from dataclasses import dataclass

from demi.server.scheduling.job import Part


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How many rows one run takes, how many requests may wait, and how long a batch that is not full waits for more."""

    max_rows: int
    max_queue: int
    max_delay_us: int = 0
    stop_after_s: float = 0.0
    """How long a run may go on once nobody waits for it; 0 is no limit."""


@dataclass(slots=True)
class BatchRun:
    """What one batch did and when, in nanoseconds of `time.perf_counter_ns`."""

    parts: list[Part]
    taken_ns: int
    stacked_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    answered_ns: int = 0
    runs: int = 0
    """How often the session ran: more than once only where a batch failed."""
    here: bool = False
    """Whether it runs on the event loop's own thread."""
    unwanted_ns: int = 0
    """Since when nobody waits for it; 0 while someone does."""
    stop_told: bool = False
    """Whether the log says already that it is being stopped."""

    @property
    def rows(self) -> int:
        """How many rows it had."""
        return sum(part.rows for part in self.parts)

    @property
    def input_ns(self) -> int:
        """How long joining the inputs took."""
        return self.stacked_ns - self.taken_ns

    @property
    def infer_ns(self) -> int:
        """How long the session ran."""
        return self.ended_ns - self.started_ns

    @property
    def output_ns(self) -> int:
        """How long splitting the outputs took."""
        return self.answered_ns - self.ended_ns

    @property
    def compute_ns(self) -> int:
        """How long joining, running and splitting took."""
        return self.input_ns + self.infer_ns + self.output_ns

    @property
    def began_ns(self) -> int:
        """When its requests had waited: to be taken, and for the device once their batch was ready."""
        return self.started_ns - self.input_ns
