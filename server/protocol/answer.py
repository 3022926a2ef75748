"""The answer of a model to one request: its outputs, precision and timing."""

from __future__ import annotations

from typing import Literal

import msgspec

from demi.server.request_ids import HEADER
from demi.tensors import Feeds

RequestedPrecision = Literal["auto", "half", "fp32"]
"""The precision that a request may choose; `auto` leaves the choice to the server."""


class Answer(msgspec.Struct, frozen=True):
    """The outputs of one request, the precision that computed them, and the nanoseconds in queue and computation.

    `not_finite` names the outputs with NaN or infinite values, `outside` the inputs outside their calibrated range.
    """

    outputs: Feeds
    precision: str
    queue_ns: int = 0
    compute_ns: int = 0
    not_finite: frozenset[str] = frozenset()
    outside: frozenset[str] = frozenset()
    tokens: int = 0
    """Tokens of the texts of a raw request, special tokens included."""


def answer_headers(answer: Answer, request_id: str = "") -> dict[str, str]:
    """Return the headers that describe an answer: `Server-Timing` (W3C, milliseconds), precision, and the client's request id."""
    headers = {
        "server-timing": f"queue;dur={answer.queue_ns / 1e6:.3f}, compute;dur={answer.compute_ns / 1e6:.3f}",
        "demi-precision": answer.precision,
    }
    if request_id:
        headers[HEADER] = request_id
    return headers
