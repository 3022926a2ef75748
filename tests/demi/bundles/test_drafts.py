"""Drafts are removed at the end of their block, or by the next writer to the same place."""

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
def kill_while_writing(self, target):
    rename(self, target)
    os.kill(os.getpid(), 9)
with writing(pathlib.Path(sys.argv[1]), force=True) as draft:
    (draft / "model.onnx").write_text("the new one")
    pathlib.Path.rename = kill_while_writing
"""


def kill_while_writing(code: str, target: Path, *arguments: str) -> None:
    """Run code that kills its own process while it writes to `target`."""
    ended = subprocess.run([sys.executable, "-c", code, str(target), *arguments], check=False)
    assert -signal.SIGKILL == ended.returncode


def test_a_draft_lasts_as_long_as_its_block(tmp_path):
    """A draft is hidden beside its target and removed at the end of the block, also after an error."""
    with contextlib.suppress(ZeroDivisionError), draft_beside(tmp_path / "m") as draft:
        (draft / "x").touch()
        assert tmp_path == draft.parent
        assert draft.name.startswith(".m-")
        raise ZeroDivisionError

    assert [] == list(tmp_path.iterdir())


def test_a_scratch_folder_lasts_as_long_as_its_block():
    """A scratch folder is removed at the end of its block."""
    with scratch() as folder:
        (folder / "x").touch()

    assert not folder.exists()


def test_drafts_of_killed_processes_are_removed(tmp_path):
    """Drafts of a killed process are removed by the next writer to that place."""
    kill_while_writing(DIE, tmp_path / "1", "now")
    assert 1 == len(list(tmp_path.glob(".1-*.partial")))
    make_bundle(tmp_path)

    assert ["1", "1/golden.npz", "1/manifest.json", "1/model.onnx"] == names(tmp_path)


def test_drafts_of_running_processes_are_kept(tmp_path):
    """Drafts of a running process are kept, and so are other folders."""
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
    """An export of one version removes abandoned drafts of other versions and restores replaced bundles."""
    (tmp_path / ".1-x.partial").mkdir()
    (tmp_path / ".3-y.replaced").mkdir()

    assert [".3-y.replaced", ".1-x.partial"] == [path.name for path in remove_abandoned(tmp_path / "2")]
    assert [tmp_path / "3"] == list(tmp_path.iterdir())


def test_replaced_bundle_is_restored(tmp_path):
    """If a process was killed between moving the old bundle away and renaming the new one, the old one is restored."""
    path = make_bundle(tmp_path)
    before = (path / "model.onnx").read_bytes()
    kill_while_writing(DIE_BETWEEN, path)
    assert not path.exists()
    remove_abandoned(path)

    assert before == (path / "model.onnx").read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_missing_folder(tmp_path):
    """In a missing folder nothing is removed or created."""
    assert [] == remove_abandoned(tmp_path / "none" / "1")
    assert [] == list(tmp_path.iterdir())


def test_names_with_brackets(tmp_path):
    """Brackets in a name are not a pattern."""
    (tmp_path / ".m[1]-x.partial").mkdir()
    (tmp_path / ".m1-x.partial").mkdir()
    with writing(tmp_path / "m[1]") as draft:
        fill(draft)

    assert {"m[1]", ".m1-x.partial"} == set(os.listdir(tmp_path))
