"""Drafts go with their makers: at the end of a block, or when the next one comes to the same place."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from demi.bundles.bundle import writing
from demi.bundles.drafts import draft_beside, remove_abandoned, scratch
from tests.demi.bundles.making import fill, make_bundle, names

DIE = """
import os, pathlib, sys
from demi.bundles.bundle import writing
with writing(pathlib.Path(sys.argv[1]), force=True) as draft:
    (draft / "model.onnx").write_text("half of it")
    if sys.argv[2] == "wait":
        print("ready", flush=True)
        sys.stdin.read()
    os.kill(os.getpid(), 9)
"""

DIE_BETWEEN = """
import os, pathlib, sys
from demi.bundles.bundle import writing
rename = pathlib.Path.rename
def die(self, target):
    rename(self, target)
    os.kill(os.getpid(), 9)
with writing(pathlib.Path(sys.argv[1]), force=True) as draft:
    (draft / "model.onnx").write_text("the new one")
    pathlib.Path.rename = die
"""


def die(code: str, target: Path, *arguments: str) -> None:
    """Run code that kills itself while it writes to `target`."""
    ended = subprocess.run([sys.executable, "-c", code, str(target), *arguments], check=False)
    assert -signal.SIGKILL == ended.returncode


def test_a_draft_lasts_as_long_as_its_block(tmp_path):
    """It is hidden beside its target, and gone at the end, whatever the end."""
    with contextlib.suppress(ZeroDivisionError), draft_beside(tmp_path / "m") as draft:
        (draft / "x").touch()
        assert tmp_path == draft.parent
        assert draft.name.startswith(".m-")
        raise ZeroDivisionError

    assert [] == list(tmp_path.iterdir())


def test_a_scratch_folder_lasts_as_long_as_its_block():
    """So is one for files that nobody keeps."""
    with scratch() as folder:
        (folder / "x").touch()

    assert not folder.exists()


def test_drafts_of_the_dead_are_removed(tmp_path):
    """What a process that was killed has left is removed by the next who writes to that place."""
    die(DIE, tmp_path / "1", "now")
    assert 1 == len(list(tmp_path.glob(".1-*.partial")))
    make_bundle(tmp_path)

    assert ["1", "1/golden.npz", "1/manifest.json", "1/model.onnx"] == names(tmp_path)


def test_drafts_of_the_living_stay(tmp_path):
    """Another process that writes to the same place keeps its draft; other folders are left alone."""
    with subprocess.Popen(
        [sys.executable, "-c", DIE, str(tmp_path / "1"), "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with draft_beside(tmp_path / "1") as mine:
            assert [] == remove_abandoned(tmp_path / "1")
            assert mine.is_dir()
            assert 2 == len(list(tmp_path.glob(".1-*.partial")))
        other.kill()
    (tmp_path / ".m-x.partial").mkdir()

    assert 1 == len(remove_abandoned(tmp_path / "1"))
    assert [tmp_path / ".m-x.partial"] == list(tmp_path.iterdir())


def test_drafts_of_other_versions(tmp_path):
    """An export of one version removes what crashed exports of others have left, and puts replaced bundles back."""
    (tmp_path / ".1-x.partial").mkdir()
    (tmp_path / ".3-y.replaced").mkdir()

    assert [".3-y.replaced", ".1-x.partial"] == [path.name for path in remove_abandoned(tmp_path / "2")]
    assert [tmp_path / "3"] == list(tmp_path.iterdir())


def test_a_bundle_that_stepped_aside_comes_back(tmp_path):
    """A process that was killed between taking the old bundle away and putting the new one there: the old one is back."""
    path = make_bundle(tmp_path)
    before = (path / "model.onnx").read_bytes()
    die(DIE_BETWEEN, path)
    assert not path.exists()
    remove_abandoned(path)

    assert before == (path / "model.onnx").read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_places_that_are_not_there(tmp_path):
    """There is nothing to remove, and nothing is made."""
    assert [] == remove_abandoned(tmp_path / "none" / "1")
    assert [] == list(tmp_path.iterdir())


def test_names_with_brackets(tmp_path):
    """A name is no pattern."""
    (tmp_path / ".m[1]-x.partial").mkdir()
    (tmp_path / ".m1-x.partial").mkdir()
    with writing(tmp_path / "m[1]") as draft:
        fill(draft)

    assert {"m[1]", ".m1-x.partial"} == set(os.listdir(tmp_path))
