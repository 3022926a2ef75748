"""What a model gave for one request: its outputs, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
