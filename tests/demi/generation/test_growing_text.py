"""Text that grows: pieces are together the whole, and nothing is given out that a later token may change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from demi.generation.growing_text import GrowingText
from demi.processing.texts import decode_ids


def bytes_tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens are single bytes, as GPT-2's are for rare characters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = bytes_tokenizer()


def pieces(text: str, *stop: str) -> list[str]:
    """Return the pieces of a text, and the rest at its end."""
    growing = GrowingText(TOKENIZER, stop)
    found = []
    for token in TOKENIZER.encode(text).ids:
        found.append(growing.add(token))
        if growing.stopped:
            break
    return [*found, growing.finish()]


@given(st.text())
def test_pieces_are_together_the_text(text):
    """Whatever its characters are."""
    assert decode_ids(TOKENIZER, TOKENIZER.encode(text).ids) == "".join(pieces(text))


def test_a_character_is_given_out_whole():
    """Its first bytes alone are no character."""
    assert ["", "", "", "🐈", ""] == pieces("🐈")


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("abcabd", ["abd"], "abc"),
        ("one\ntwo", ["\n"], "one"),
        ("aab", ["ab", "aab"], ""),
        ("abab", ["abc"], "abab"),
        ("xx", ["x"], ""),
    ],
)
def test_a_stop_text_ends_the_text(text, stop, expected):
    """The first that appears, wherever tokens begin and end; beginnings of one are held back until it is decided."""
    assert expected == "".join(pieces(text, *stop))


def test_a_beginning_of_a_stop_text_is_held_back():
    """It could not be taken back once it was sent."""
    assert ["a", "", "", "bbc", ""] == pieces("abbc", "bbd")
