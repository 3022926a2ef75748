"""Comparisons of answers: they can fail, and they accept differences that do not matter to users."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.wild.bodies import Box, unmatched
from tests.wild.ocr import moved
from tests.wild.reactions import graph_feeds, tokens
from tests.wild.silero import judged_otherwise
from tests.wild.smiles import read_smiles
from tests.wild.task import different
from tests.wild.thai import Sentence, recut
from tests.wild.voices import apart

FACE = Box(1, 0.83, (10.0, 10.0, 60.0, 60.0))


def test_lists_of_decisions():
    """Each differing decision is reported."""
    assert "" == different(["png", "zip"], ["png", "zip"])
    assert "1 of 2: 'gif' in place of 'zip'" == different(["png", "zip"], ["png", "gif"])
    assert "1 in place of 2" == different(["png", "zip"], ["png"])


@pytest.mark.parametrize(
    "got",
    [
        [],
        [FACE, FACE],
        [replace(FACE, kind=12)],
        [replace(FACE, score=0.80)],
        [replace(FACE, edges=(14.0, 10.0, 64.0, 60.0))],
    ],
    ids=["none", "another besides", "another kind", "another score", "somewhere else"],
)
def test_detections_that_differ(got):
    """Boxes that appear, vanish, move, or change their class or score are reported."""
    assert unmatched([[FACE]], [got])


def test_detections_that_are_alike():
    """Boxes may move by a fraction of a pixel and swap their order."""
    other = Box(12, 0.4, (100.0, 100.0, 150.0, 150.0))

    assert "" == unmatched([[FACE, other]], [[other, replace(FACE, score=0.831, edges=(10.3, 10.0, 60.2, 60.0))]])


def test_regions_of_text():
    """There must be as many regions, at the same places."""
    assert "" == moved([[(0, 0, 90, 20)]], [[(0, 1, 91, 20)]])
    assert "an edge in picture 0 is off by 5 pixels" == moved([[(0, 0, 90, 20)]], [[(0, 0, 95, 20)]])
    assert "picture 0 has 0 boxes in place of 1" == moved([[(0, 0, 90, 20)]], [[]])


def test_voices():
    """A frame on the other side of the threshold counts, unless FP32 is near the threshold."""
    expected = np.array([0.1, 0.495, 0.9])

    assert "" == judged_otherwise(expected, np.array([0.2, 0.505, 0.8]))
    assert "1 of 3 frames: 2 (0.490 in place of 0.900)" == judged_otherwise(expected, np.array([0.1, 0.49, 0.49]))


def test_cuts():
    """A word that starts elsewhere counts, unless FP32 is near the threshold."""
    expected = Sentence("abcd", np.array([0.5, -0.0015, 0.4, -0.5]))

    assert "" == recut([expected], [Sentence("abcd", np.array([0.5, 0.01, 0.3, -0.4]))])
    assert "1 of 1: 'ab|c|d' in place of 'ab|cd'" == recut([expected], [Sentence("abcd", np.array([0.5, 0, 0.4, 0.1]))])


def test_speakers():
    """Vectors must have the same direction."""
    assert "" == apart([np.array([1.0, 0.0])], [np.array([1.0, 0.01])])
    assert "cosines are 0.99500" == apart([np.array([1.0, 0.0])], [np.array([0.995, 0.09987])])


def test_molecules():
    """Implicit hydrogens count as neighbours: pyridine, nitromethane, pyrrole."""
    assert (3, 3, 3, 2, 3, 3) == read_smiles("c1ccncc1").neighbours
    assert (4, 3, 1, 1) == read_smiles("C[N+](=O)[O-]").neighbours
    assert (3, 3, 3, 3, 3) == read_smiles("c1cc[nH]c1").neighbours
    assert (6, 8, 6) == read_smiles("COC").numbers
    assert [[0, 1, 2], [1, 0, 1], [2, 1, 0]] == read_smiles("COC").distances.tolist()
    with pytest.raises(ValueError, match="not of the SMILES"):
        read_smiles("CO~C")
    with pytest.raises(ValueError, match=r"\[C@H\] is not an atom"):
        read_smiles("C[C@H](N)O")


def test_reactions_as_rows():
    """A row has a token for the reaction, one for each molecule, and their atoms; molecules are not connected."""
    feeds = graph_feeds("CO.N>>CN")

    assert [[0, 1, 8, 10, 1, 9, 1, 8, 9]] == feeds["atoms"].tolist()
    assert [[1, 0, 2, 2, 0, 2, 0, 3, 3]] == feeds["roles"].tolist()
    assert [[0, 0, 6, 4, 0, 5, 0, 6, 5]] == feeds["neighbors"].tolist()
    assert [[1, 1, 1], [1, 2, 3], [1, 3, 2]] == feeds["distances"][0, 1:4, 1:4].tolist()
    assert 0 == feeds["distances"][0, 2, 5]
    assert ["[CLS]", "C", "O", ".", "N", ">>", "C", "N", "[SEP]"] == tokens("CO.N>>CN")
