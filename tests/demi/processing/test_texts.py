"""Texts to token ids: lengths, padding, truncation, and texts that are refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.errors import BundleError, InputError
from demi.processing import texts
from demi.processing.description import TextInput
from demi.processing.prepared import RawRows
from demi.processing.texts import TextPreprocessor, TooLongError
from demi.tensors import DType, TensorSpec
from tests.raw_inputs import TEXT, tokenizer_json

SPECS = {
    name: TensorSpec(name, DType.INT64, ("batch", "tokens"))
    for name in ("input_ids", "attention_mask", "token_type_ids")
}


def preprocessor(description: TextInput = TEXT, specs=SPECS) -> TextPreprocessor:
    """Return the preprocessor of whole words."""
    return TextPreprocessor(description, tokenizer_json().decode(), specs, "x")


def arrays(raw: RawRows, description: TextInput = TEXT, specs=SPECS) -> dict[str, list]:
    """Return the inputs for texts as lists."""
    found = preprocessor(description, specs)
    return {name: array.tolist() for name, array in found.stack(found.read(raw)).items()}


def test_texts_are_padded_to_the_longest():
    """Ids and mask, with the padding token and 0."""
    assert {
        "input_ids": [[1, 4, 5, 2], [1, 6, 2, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
    } == arrays(RawRows(("a cat", "sat")))


def test_padding_on_the_left():
    """Models that continue a text have their padding before it."""
    left = msgspec.structs.replace(TEXT, pad_side="left")

    assert [[1, 4, 5, 2], [0, 1, 6, 2]] == arrays(RawRows(("a cat", "sat")), left)["input_ids"]


def test_pairs_have_types():
    """The second text has type 1."""
    pair = msgspec.structs.replace(TEXT, pair=True, types="token_type_ids")

    assert [[0, 0, 0, 1, 1]] == arrays(RawRows(("a",), ("cat",)), pair)["token_type_ids"]


def test_a_fixed_length_is_filled():
    """A model of one length gets it."""
    fixed = {name: TensorSpec(name, DType.INT32, ("batch", 6)) for name in SPECS}
    found = preprocessor(specs=fixed)

    ids = found.stack(found.read(RawRows(("a",))))["input_ids"]

    assert ([[1, 4, 2, 0, 0, 0]], np.int32) == (ids.tolist(), ids.dtype)


def test_a_long_text_is_refused():
    """Its own error says how many tokens it has, and how to have it cut."""
    with pytest.raises(TooLongError, match=r"text 1 has 9 tokens, but the model takes at most 8") as raised:
        preprocessor().read(RawRows(("a", "a cat sat down a cat sat")))

    assert "truncate" in str(raised.value)


def test_a_long_text_is_cut_when_asked():
    """The special tokens stay."""
    assert [[1, 4, 5, 6, 7, 4, 5, 2]] == arrays(RawRows(("a cat sat down a cat sat",), truncate=True))["input_ids"]


def test_truncation_can_keep_the_end():
    """The side is the tokenizer's."""
    left = msgspec.structs.replace(TEXT, truncation_side="left")

    assert [[1, 5, 6, 7, 4, 5, 6, 2]] == arrays(RawRows(("a cat sat down a cat sat",), truncate=True), left)[
        "input_ids"
    ]


def test_texts_may_be_ids():
    """The caller has tokenized them, special tokens included."""
    assert [[1, 4, 2]] == arrays(RawRows(((1, 4, 2),)))["input_ids"]


@pytest.mark.parametrize("row", [(), (9,), (-1,)])
def test_ids_beyond_the_vocabulary_are_refused(row):
    """And none at all."""
    with pytest.raises(InputError, match="outside 0 to 8"):
        preprocessor().read(RawRows((row,)))


def test_a_huge_text_is_refused(monkeypatch):
    """Even one that may be truncated: all of it would be tokenized."""
    monkeypatch.setattr(texts, "MOST_CHARACTERS", 10)

    with pytest.raises(InputError, match="text 0 has 11 characters; at most 10"):
        preprocessor().read(RawRows(("a" * 11,), truncate=True))


@pytest.mark.parametrize("source", ["", "{}", "null", '{"model": {"type": "Python"}}', "[" * 10_000])
def test_a_damaged_tokenizer_is_refused(source):
    """The error names the file."""
    with pytest.raises(BundleError, match=r"`tokenizer.json` cannot be read"):
        TextPreprocessor(TEXT, source, SPECS, "x")


@given(st.lists(st.text(), min_size=1, max_size=6))
def test_any_text_becomes_rows_of_equal_length(rows):
    """Whatever Unicode holds: controls, combining marks, emoji, right-to-left marks."""
    found = preprocessor()

    feeds = found.stack(found.read(RawRows(tuple(rows), truncate=True)))

    assert (len(rows), feeds["attention_mask"].sum(1).max()) == feeds["input_ids"].shape
    assert (feeds["input_ids"][:, 0] == 1).all()


@given(st.lists(st.text(alphabet="a cast", max_size=30), min_size=5, max_size=9))
def test_many_texts_are_as_each_alone(rows):
    """The batch of the tokenizer equals one after the other."""
    found = preprocessor()

    together = found.read(RawRows(tuple(rows), truncate=True))

    assert [row.values for row in together] == [found.read(RawRows((text,), truncate=True))[0].values for text in rows]
