"""What a model gave for one request: its outputs, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from demi.server.request_ids import HEADER
from demi.tensors import Feeds

Wish = Literal["auto", "half", "fp32"]
"""The precision a request may ask for; `auto` leaves the choice to the server."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of one request, the precision they were computed in, and nanoseconds spent waiting and computing.

    `not_finite` names the outputs that hold NaN or infinite values, `outside` the inputs beyond what calibration saw.
    """

    outputs: Feeds
    precision: str
    queue_ns: int = 0
    compute_ns: int = 0
    not_finite: frozenset[str] = frozenset()
    outside: frozenset[str] = frozenset()


def answer_headers(answer: Answer, request_id: str = "") -> dict[str, str]:
    """The headers that say how an answer came about: `Server-Timing` (W3C) in milliseconds, the precision, and the id
    that the client sent."""
    headers = {
        "server-timing": f"queue;dur={answer.queue_ns / 1e6:.3f}, compute;dur={answer.compute_ns / 1e6:.3f}",
        "demi-precision": answer.precision,
    }
    if request_id:
        headers[HEADER] = request_id
    return headers
