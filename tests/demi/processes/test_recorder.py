"""Records that a process writes about its work, and their evaluation after a crash."""

from __future__ import annotations

import contextlib
import os

import pytest

from demi.processes import recorder
from demi.processes.recorder import Record, doing, making, note, owning


@pytest.fixture
def notes(monkeypatch):
    """Record this process and return the function that reads all its notes."""
    reads, writes = os.pipe()
    monkeypatch.setattr(recorder, "_pipe", writes)
    record = Record()

    def read():
        note("mark")
        while ["mark"] not in record.answers:
            record.feed(os.read(reads, 7))  # notes come in parts
        record.answers.remove(["mark"])
        return record

    yield read
    os.close(reads)
    os.close(writes)


def test_no_recorder(tmp_path):
    """Without a recorder nothing is noted, and the blocks run normally."""
    assert not recorder.is_watched()
    with doing("opening the model", 1.0), owning(tmp_path):
        note("anything")


def test_steps(notes):
    """A step is noted inside its parent step while its block runs, also if it ends with an error."""
    with doing("writing the bundle"):
        with contextlib.suppress(ZeroDivisionError), doing("opening `m.onnx`"):
            assert "writing the bundle, opening `m.onnx`" == notes().doing
            raise ZeroDivisionError
        assert "writing the bundle" == notes().doing
    assert "" == notes().doing


def test_limits(notes):
    """Only steps with a limit can be late, and only while they run."""
    with doing("planning"):
        assert 0.0 == notes().overdue()
        with doing("opening", 1e-6):
            assert 1e-6 == notes().overdue()
        with doing("opening", 1000.0):
            assert 0.0 == notes().overdue()
    assert 0.0 == notes().overdue()


def test_drafts_of_a_crashed_process(notes, tmp_path):
    """Drafts that a crashed process owned are removed with their contents; the folders it created, if empty."""
    draft, made, used = tmp_path / "made" / "draft", tmp_path / "made", tmp_path / "used"
    draft.mkdir(parents=True)
    used.mkdir()
    (draft / "half").write_text("of it")
    (tmp_path / ".plan.json-x").write_text("half of it")
    (used / "whole").write_text("all of it")
    with making(made), making(used), owning(draft), owning(tmp_path / ".plan.json-x"):
        record = notes()
        record.clean_up()

    assert [used] == list(tmp_path.iterdir())
    assert not notes().drafts | notes().if_empty


def test_names_of_any_bytes(notes, tmp_path):
    """Paths may contain bytes that are not text."""
    folder = tmp_path / os.fsdecode(b"\xff \xd1\x8f")
    with owning(folder):
        assert {str(folder)} == notes().drafts


def test_the_reader_is_gone(monkeypatch):
    """If the reader is gone, the work continues."""
    reads, writes = os.pipe()
    os.close(reads)
    monkeypatch.setattr(recorder, "_pipe", writes)
    with doing("working"):
        pass
    os.close(writes)
