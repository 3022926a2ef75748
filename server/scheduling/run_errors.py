"""Classification of failed runs: an index out of the model's range, or an input that is too small, is the client's error,
everything else the server's.

ONNX Runtime reports such values in its message text: a token id beyond the vocabulary, or a text longer than the model
has positions. The client can correct them, so its answer names the value and the input.
"""

from __future__ import annotations

import re

import numpy as np

from demi.errors import InferenceError
from demi.server.errors import RequestError
from demi.tensors import Feeds

OUT_OF_RANGE = (
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
"""ONNX Runtime's messages for values out of range: pattern, name of the value, and accepted range."""

TOO_SMALL = re.compile(r"Invalid input shape: \{([\d,]*)\}")
"""ONNX Runtime's message for an input that is smaller than a kernel, such as a very short sound."""

_NODE = re.compile(r"while running (\w+) node\. Name:'([^']*)'")


def classify_run_error(error: Exception, feeds: Feeds) -> Exception:
    """Return a RequestError if a value in one request's `feeds` caused the failed run, else the error itself."""
    if not isinstance(error, InferenceError):
        return error
    for pattern, value, accepted in OUT_OF_RANGE:
        if match := pattern.search(error.message):
            text = _text(error.message, value.format(*match.groups()), accepted, match.groups(), feeds)
            classified = RequestError(text)
            classified.__cause__ = error
            return classified
    if match := TOO_SMALL.search(error.message):
        too_small = RequestError(
            f"the inputs are too small for {_place(error.message)}, which gets the shape [{match[1]}]",
            hint="send larger ones, such as a longer sound",
        )
        too_small.__cause__ = error
        return too_small
    return error


def _place(message: str) -> str:
    """Return the name of the node that failed, or its operator."""
    node = _NODE.search(message)
    return f"`{node[2] or node[1]}`" if node else "the model"


def _text(message: str, value: str, accepted: str, groups: tuple[str, ...], feeds: Feeds) -> str:
    """Return the message for the client: "input `ids` holds 7: index 7 is out of range in `/Gather`, ..."."""
    place = _place(message)
    names = inputs_holding(int(groups[0]), feeds) if groups else []
    holds = f"input {' or '.join(f'`{name}`' for name in names)} holds {groups[0]}: " if names else ""
    takes = f", which accepts {accepted.format(*groups[1:])}" if accepted else ""
    advice = "" if names else "; send shorter inputs, or values within the model's range"
    return f"{holds}{value} is out of range in {place}{takes}{advice}"


def inputs_holding(value: int, feeds: Feeds) -> list[str]:
    """Return the names of the integer inputs that hold a value."""
    return [name for name, values in feeds.items() if values.dtype.kind in "iu" and bool(np.any(values == value))]
