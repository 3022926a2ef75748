"""What a process notes of itself, and what another makes of the notes."""

from __future__ import annotations

import contextlib
import os

import pytest

from demi.processes import recorder
from demi.processes.recorder import Record, doing, making, note, owning


@pytest.fixture
def notes(monkeypatch):
    """Watches this process; gives the record of all it has noted so far."""
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


def test_nobody_watches(tmp_path):
    """Then nothing is noted, and the blocks do what they do."""
    assert not recorder.is_watched()
    with doing("opening the model", 1.0), owning(tmp_path):
        note("anything")


def test_what_is_done(notes):
    """The whole and then the part, as long as it lasts; also when the block ends with an error."""
    with doing("writing the bundle"):
        with contextlib.suppress(ZeroDivisionError), doing("opening `m.onnx`"):
            assert "writing the bundle, opening `m.onnx`" == notes().doing
            raise ZeroDivisionError
        assert "writing the bundle" == notes().doing
    assert "" == notes().doing


def test_limits(notes):
    """Only what has a limit can be late, and only while it lasts."""
    with doing("planning"):
        assert 0.0 == notes().overdue()
        with doing("opening", 1e-6):
            assert 1e-6 == notes().overdue()
        with doing("opening", 1000.0):
            assert 0.0 == notes().overdue()
    assert 0.0 == notes().overdue()


def test_what_is_left_behind(notes, tmp_path):
    """Drafts that the dead process owned go, with all that is in them; those it made for them go where they are empty."""
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
    """A path may hold what is no text."""
    folder = tmp_path / os.fsdecode(b"\xff \xd1\x8f")
    with owning(folder):
        assert {str(folder)} == notes().drafts


def test_the_watcher_has_gone(monkeypatch):
    """Nobody reads any more: the work goes on."""
    reads, writes = os.pipe()
    os.close(reads)
    monkeypatch.setattr(recorder, "_pipe", writes)
    with doing("working"):
        pass
    os.close(writes)
