"""Checks on texts, images and sounds with labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from demi.bundles.bundle import open_bundle
from demi.calibration.gate.data import read_data
from demi.calibration.gate.raw_evaluation import for_bundle
from demi.errors import SampleError
from tests.raw_inputs import wav, write_raw_bundle
from tests.server.bundles import SCALE, write_bundle


def table(folder: Path, *rows: str) -> str:
    """Write a table of texts and labels, and return its path."""
    (folder / "a.csv").write_text("\n".join(("text,label", *rows)))
    return str(folder / "a.csv")


def test_labels_become_numbers_of_classes(tmp_path):
    """Names are those of the bundle; numbers stay."""
    bundle = open_bundle(write_raw_bundle(tmp_path / "sentiment" / "1", "sentiment"))

    found = for_bundle(read_data(table(tmp_path, "a,bad", "Paris Paris,good", "a cat,1")), bundle)

    assert [[1, 0, 1]] == [labels.tolist() for labels in found.labels or ()]
    assert [(3, 4)] == [feeds["input_ids"].shape for feeds in found.sets]


def test_lines_are_texts_without_labels(tmp_path):
    """Half is compared with FP32 on them, as on any data."""
    bundle = open_bundle(write_raw_bundle(tmp_path / "sentiment" / "1", "sentiment"))
    (tmp_path / "a.txt").write_text("a cat\nParis sat\n")

    found = for_bundle(read_data(str(tmp_path / "a.txt")), bundle)

    assert ([(2, 4)], None) == ([feeds["input_ids"].shape for feeds in found.sets], found.labels)


def test_labels_follow_rows_into_their_runs(tmp_path):
    """Sounds of different lengths do not share one."""
    bundle = open_bundle(write_raw_bundle(tmp_path / "loud" / "1", "loud"))
    import numpy as np

    for index, length in enumerate((500, 900, 500)):
        (tmp_path / f"{index}.wav").write_bytes(wav(np.ones(length, np.float32)))
    (tmp_path / "a.csv").write_text("audio,label\n0.wav,loud\n1.wav,quiet\n2.wav,quiet\n")

    found = for_bundle(read_data(str(tmp_path / "a.csv")), bundle)

    assert [[0, 1], [1]] == [labels.tolist() for labels in found.labels or ()]


def test_an_unknown_label_is_refused(tmp_path):
    """The error names the row."""
    bundle = open_bundle(write_raw_bundle(tmp_path / "sentiment" / "1", "sentiment"))

    with pytest.raises(SampleError, match="row 1 has the label `fine`"):
        for_bundle(read_data(table(tmp_path, "a,bad", "cat,fine")), bundle)


def test_a_bundle_of_tensors_is_refused(tmp_path):
    """It cannot read texts."""
    bundle = open_bundle(write_bundle(tmp_path / "scale" / "1", SCALE))

    with pytest.raises(SampleError, match="the bundle takes tensors"):
        for_bundle(read_data(table(tmp_path, "a,bad")), bundle)
