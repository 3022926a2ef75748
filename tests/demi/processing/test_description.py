"""`processing.json`: what it says, and everything that is refused."""

from __future__ import annotations

import json

import msgspec
import pytest

from demi.errors import BundleError
from demi.processing.description import decode, encode
from tests.raw_inputs import COLORS, EMBEDDING, LOUDNESS, SCORING, TAGGING


@pytest.mark.parametrize("description", [EMBEDDING, SCORING, TAGGING, COLORS, LOUDNESS])
def test_a_description_is_read_as_written(description):
    """Every kind survives the file."""
    assert description == decode(encode(description), "x")


def edited(**changes: object) -> bytes:
    """Return the description of COLORS with changed members, by dotted path (dots as double underscores)."""
    content = json.loads(encode(COLORS))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = content
        for name in parents:
            place = place[name]
        place[last] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not valid"),
        (b"\xff", "not valid"),
        (b"[" * 100_000, "not valid"),
        (edited(code="import os"), "unknown field `code`"),
        (edited(input__kind="program"), "Invalid value 'program'"),
        (edited(input__steps=[]), "unknown field `steps`"),
        (edited(input__resize={"filter": "neural", "height": 4, "width": 4}), "Invalid enum value"),
        (edited(input__resize={"filter": "box", "height": 1 << 40, "width": 4}), "<= 16777216"),
        (edited(input__resize={"filter": "box", "height": 4}), "either `height` and `width`"),
        (edited(input__resize={"filter": "box", "height": 4, "width": 4, "shortest_edge": 4}), "either `height`"),
        (edited(input__mean=[0.5, 0.5, 0.5]), "belong together"),
        (edited(input__mean=[0.5], input__std=[0.5]), "1 values for 3 channels"),
        (edited(input__mean=[0, 0, 0], input__std=[1, 0, 1]), "holds a zero"),
        (edited(schema=2), "schema 2; this Demi reads schema 1"),
        (edited(answer__function="exec"), "Invalid enum value"),
        (edited(answer={"kind": "tokens", "output": "logits", "labels": []}), "only texts have tokens"),
        (edited(answer={"kind": "embedding", "output": "logits", "pooling": "mean"}), "only the vectors of tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(data, message):
    """Unknown fields, kinds and values, and contradictions."""
    with pytest.raises(BundleError, match=message):
        decode(data, "x")


def test_nothing_in_it_names_a_file():
    """No field holds a path that an untrusted bundle could lead elsewhere."""
    names = {
        name for kind in msgspec.json.schema_components([type(EMBEDDING)])[1].values() for name in kind["properties"]
    }

    assert not names & {"path", "file", "tokenizer", "url", "module", "function_name"}
