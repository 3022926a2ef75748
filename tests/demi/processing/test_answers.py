"""A model's outputs to answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.errors import InferenceError
from demi.processing.answers import apply, make_answers, pool, unit_length
from demi.processing.description import ClassAnswer, ScoreAnswer, TokenAnswer
from demi.processing.prepared import Token

VECTORS = np.float32([[[1, 2], [3, 6], [100, 100]], [[5, 1], [7, 9], [1, 1]]])
MASK = np.int64([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [[2, 4], [13 / 3, 11 / 3]]),
        ("cls", [[1, 2], [5, 1]]),
        ("last", [[3, 6], [1, 1]]),
        ("max", [[3, 6], [7, 9]]),
    ],
)
def test_pooling_ignores_padding(pooling, expected):
    """One vector a text."""
    assert np.allclose(expected, pool(VECTORS, MASK, pooling))


def test_the_first_and_last_token_are_found_after_padding_on_the_left():
    """Padding comes first for some models."""
    left = MASK[:1, ::-1]

    assert [[3, 6]] == pool(VECTORS[:1], left, "cls").tolist()
    assert [[100, 100]] == pool(VECTORS[:1], left, "last").tolist()


def test_a_vector_of_zeros_has_no_direction():
    """It stays as it is."""
    assert np.allclose([[0, 0], [0.6, 0.8]], unit_length(np.float32([[0, 0], [3, 4]])))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8))
def test_softmax_is_a_distribution(logits):
    """For any logits."""
    scores = apply("softmax", np.float32([logits]))

    assert np.isclose(1, scores.sum(), atol=1e-5)
    assert scores.argmax() == np.argmax(scores)


def test_sigmoid_of_large_numbers_does_not_overflow():
    """0 and 1, without a warning."""
    assert [0, 0.5, 1] == apply("sigmoid", np.float32([-1e4, 0, 1e4])).tolist()


def test_classes_have_scores_and_a_label():
    """The label is that of the largest score."""
    found = make_answers(ClassAnswer("logits", ("no", "yes")), np.float32([[0, 0.5]]), None, ())

    assert ["yes"] == found["label"].tolist()
    assert np.allclose([[0.37754, 0.62246]], found["scores"], atol=1e-4)


def test_a_model_with_more_classes_than_labels_fails():
    """Its file may leave the number of classes open."""
    with pytest.raises(InferenceError, match="scores 3 classes, but 2 have names"):
        make_answers(ClassAnswer("logits", ("no", "yes")), np.zeros((1, 3)), None, ())


def test_a_score_is_one_number_a_row():
    """Of one logit, or of the last of two."""
    assert [3.0] == make_answers(ScoreAnswer("logits", "none"), np.float32([[3]]), None, ())["score"].tolist()


def test_entities_name_their_place():
    """Special tokens and ignored labels are left out."""
    tokens = (Token("[CLS]", 0, 0, special=True), Token("in", 0, 2), Token("Paris", 3, 8))
    logits = np.float32([[[0, 9], [9, 0], [0, 9], [0, 9]]])

    (found,) = make_answers(TokenAnswer("logits", ("O", "place")), logits, None, (tokens,))["entities"]

    entity = json.loads(found)[0]
    assert 1 == len(json.loads(found))
    assert ("place", 2, "Paris", 3, 8) == tuple(entity[key] for key in ("entity", "index", "word", "start", "end"))
