"""Records of requests whose half-precision answer was NaN or infinite.

A record holds a fingerprint of the inputs. The inputs themselves are stored only with `--keep-guarded`
(`demi.server.accuracy.guarded_inputs`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from demi.server.accuracy.fingerprint import fingerprint
from demi.server.clock import now_ms
from demi.tensors import Feeds

MAX_RECORDS = 100
"""Records kept in memory; the oldest is dropped first."""


@dataclass(frozen=True, slots=True)
class GuardedRequest:
    """Record of one request whose half-precision answer was not finite."""

    request_id: str
    fingerprint: str
    when_ms: int
    outputs: tuple[str, ...]
    """Names of the outputs that were not finite in half precision, sorted."""
    repaired: bool
    """True if FP32 answered with finite values instead."""


class Guard:
    """Counts and records of the requests that half precision could not answer. Used on the event loop's thread only."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        """Folder in which the inputs of guarded requests are stored; None stores none."""
        self.records: deque[GuardedRequest] = deque(maxlen=MAX_RECORDS)
        self.reruns = 0
        self.unrepaired = 0

    def record(self, request_id: str, feeds: Feeds, outputs: frozenset[str], *, repaired: bool) -> GuardedRequest:
        """Record one request, count it as repaired by FP32 or not, and return its record."""
        self.reruns += repaired
        self.unrepaired += not repaired
        made = GuardedRequest(request_id, fingerprint(feeds), now_ms(), tuple(sorted(outputs)), repaired)
        self.records.append(made)
        return made
