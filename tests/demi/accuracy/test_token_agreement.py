"""Tokens that half generates beside FP32's: shares, by step."""

from __future__ import annotations

import pytest

from demi.accuracy.budget import parse_budget
from demi.accuracy.token_agreement import Step, token_agreement
from demi.errors import InputError


def text(*same: bool, error: float = 0.0) -> list[Step]:
    """Return the steps of one text."""
    return [Step(each, error) for each in same]


def test_shares_and_the_first_difference():
    """Over all steps of all texts; a text with one other token is not FP32's."""
    found = token_agreement([text(True, True, True, False), text(True, True), text(True, False)])

    assert (3, 8, 0.75, 1, 2) == (
        found.texts,
        found.tokens,
        found.same,
        found.whole_texts,
        found.first_difference,
    )


def test_nothing_differs():
    """There is no first difference."""
    assert (1.0, None) == (token_agreement([text(True)]).same, token_agreement([text(True)]).first_difference)


def test_errors_along_the_steps():
    """Groups of steps grow; the error of a group is the median of its steps."""
    steps = [Step(place != 3, float(place)) for place in range(1, 8)]
    found = token_agreement([steps]).by_step

    assert [(1, 1), (2, 4), (5, 7)] == [(group.first, group.last) for group in found]
    assert [1.0, 3.0, 6.0] == [group.relative_l2 for group in found]
    assert [1.0, 2 / 3, 1.0] == [group.same for group in found]


def test_texts_of_different_lengths():
    """Later groups have the steps of the longer ones."""
    assert [2, 2] == [group.tokens for group in token_agreement([text(True), text(True, True, True)]).by_step]


def test_a_budget_for_tokens():
    """It stands by itself, beside limits for outputs."""
    found = parse_budget(["tokens=0.99", "logits:top1=0.9"])

    assert (0.99, 0.9, None) == (found.tokens, found.limits("logits").top1, parse_budget([]).tokens)


@pytest.mark.parametrize("texts", [["tokens=2"], ["tokens=x"], ["tokens"], ["tokens=1", "tokens=1"]], ids=str)
def test_a_budget_that_is_none(texts):
    """A share from 0 to 1, given once."""
    with pytest.raises(InputError, match=r"tokens|as a budget"):
        parse_budget(texts)
