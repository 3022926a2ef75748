"""Texts, images and sounds from tables and folders, and what is refused."""

from __future__ import annotations

import pytest

from demi.calibration.raw_data import is_raw, read_raw
from demi.errors import SampleError
from tests.raw_inputs import png, wav


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\na cat,yes\n"one, two",no\n'),
        ("a.tsv", "text\tlabel\na cat\tyes\none, two\tno\n"),
        ("a.jsonl", '{"text": "a cat", "label": "yes"}\n\n{"text": "one, two", "label": "no"}\n'),
    ],
)
def test_tables(tmp_path, name, content):
    """A column for the input, and one for the labels."""
    (tmp_path / name).write_text(content)

    found = read_raw(tmp_path / name, ("text",))

    assert (("a cat", "one, two"), ("yes", "no")) == (found.rows, found.labels)


def test_lines(tmp_path):
    """Empty ones are left out."""
    (tmp_path / "a.txt").write_text("a cat\n\n  \nsat\n")

    assert ("a cat", "sat") == read_raw(tmp_path / "a.txt", ("text",)).rows


def test_pairs(tmp_path):
    """Two columns."""
    (tmp_path / "a.csv").write_text("text,text_pair\na,b\n")

    assert (("a",), ("b",)) == (
        read_raw(tmp_path / "a.csv", names := ("text", "text_pair")).rows,
        read_raw(tmp_path / "a.csv", names).pairs,
    )


def test_a_folder_of_folders_has_labels(tmp_path):
    """One for each subfolder."""
    for name in ("day", "night"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png())
    (tmp_path / "day" / "notes.md").write_text("x")

    found = read_raw(tmp_path, ("image",))

    assert (("day", "night"), 2) == (found.labels, len(found))
    assert png() == found.part(0, 1).rows[0]


def test_paths_in_a_table_are_relative_to_it(tmp_path):
    """Wherever the command runs."""
    (tmp_path / "a.wav").write_bytes(wav())
    (tmp_path / "a.csv").write_text("audio\na.wav\n")

    assert wav() == read_raw(tmp_path / "a.csv", ("audio",)).part(0, 1).rows[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sentence\na\n", "row 0 has no `text`"),
        ("a.txt", "\n", "there are no texts"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.csv", "text,label\n\udcff,yes\n", "not UTF-8 text"),
        ("a.txt", "caf\udce9\n", "not UTF-8 text"),
        ("a.png", "x", "not a file of texts"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, content, message):
    """The error names the file."""
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))

    with pytest.raises(SampleError, match=message):
        read_raw(tmp_path / name, ("text",))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text"], "give a .txt of texts, one a line, or a .csv"),
        (["text", "text_pair"], "give a .csv, .tsv or .jsonl with the columns text, text_pair, label"),
        (["audio"], "give a .flac or .wav file, a folder of them, or a .csv"),
    ],
    ids=str,
)
def test_the_hint_is_for_this_kind_of_input(tmp_path, names, expected):
    """What to give for sounds is not a file of texts."""
    (tmp_path / "data.zip").write_bytes(b"")

    with pytest.raises(SampleError) as caught:
        read_raw(tmp_path / "data.zip", names)

    assert caught.value.hint.startswith(expected)


def test_a_missing_file_is_refused(tmp_path):
    """The hint lists the forms."""
    with pytest.raises(SampleError, match="no such file") as raised:
        read_raw(tmp_path / "none.csv", ("text",))

    assert "with the columns text, label" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.csv", True), ("a.WAV", True), ("a.npz", False), ("module:function", False)]
)
def test_arrays_are_not_raw(name, expected):
    """By their names."""
    assert expected == is_raw(name)
