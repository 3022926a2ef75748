"""Whose fault a failed run is: an index that a model does not have comes from the request, and the answer says so.

A run fails for many reasons, and most are the server's. Where the runtime's own words say that a value was out of range,
the caller can mend it: an id beyond the vocabulary, a text longer than the model has positions.
"""

from __future__ import annotations

import re

import numpy as np

from demi.errors import InferenceError
from demi.server.errors import RequestError
from demi.tensors import Feeds

FAULTS = (
    # Gather, GatherElements of some versions, ScatterElements
    (re.compile(r"idx=(-?\d+) must be within the inclusive range \[(-?\d+),\s*(-?\d+)\]"), "index {}", "{} to {}"),
    # GatherND, ScatterND ("indice")
    (re.compile(r"invalid ind(?:ex|ice) found, ind(?:ex|ice) = (-?\d+)"), "index {}", ""),
    # GatherElements
    (re.compile(r"Out of range value in index tensor"), "an index", ""),
    # EmbedLayerNormalization, ONNX Runtime's own
    (re.compile(r"input index out of range"), "an index", ""),
    # ReverseSequence
    (
        re.compile(r"Invalid sequence length: (-?\d+)\. Value must be in range \[(-?\d+),\s*(-?\d+)\]"),
        "length {}",
        "{} to {}",
    ),
)
"""ONNX Runtime's words for a value that is out of range, what was out of range in ours, and what it should have been."""

_NODE = re.compile(r"while running (\w+) node\. Name:'([^']*)'")


def find_fault(error: Exception, feeds: Feeds) -> Exception:
    """The error of a run on one request's inputs: a RequestError where its values are to blame, else the same error."""
    if not isinstance(error, InferenceError):
        return error
    for words, what, room in FAULTS:
        if match := words.search(error.message):
            fault = RequestError(_text(error.message, what.format(*match.groups()), room, match.groups(), feeds))
            fault.__cause__ = error
            return fault
    return error


def _text(message: str, what: str, room: str, found: tuple[str, ...], feeds: Feeds) -> str:
    """`input `ids` holds 7: node `/Gather` has no index 7, only -3 to 2`."""
    node = _NODE.search(message)
    place = f"`{node[2] or node[1]}`" if node else "the model"
    names = holding(int(found[0]), feeds) if found else []
    holds = f"input {' or '.join(f'`{name}`' for name in names)} holds {found[0]}: " if names else ""
    takes = f", it takes {room.format(*found[1:])}" if room else ""
    advice = "" if names else "; send shorter inputs, or values within what the model was made for"
    return f"{holds}{what} is out of range in {place}{takes}{advice}"


def holding(value: int, feeds: Feeds) -> list[str]:
    """The inputs of whole numbers that hold a value."""
    return [name for name, values in feeds.items() if values.dtype.kind in "iu" and bool(np.any(values == value))]
