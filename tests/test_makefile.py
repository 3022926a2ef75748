"""`make`: it makes an environment, makes a half-made one again, and leaves others' alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def made(environment: Path) -> subprocess.CompletedProcess[str]:
    """`make` of an empty environment, to its end."""
    command = ["make", "-C", str(ROOT), f"VENV={environment}", f"PYTHON={sys.executable}", f"{environment}/.made"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_an_environment_that_make_did_not_create(tmp_path):
    """The environment is not touched, and the hint names the way around it."""
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "theirs").touch()
    ended = made(tmp_path / "venv")

    assert 0 != ended.returncode
    assert "make did not create it\nhint: choose another folder: make " in ended.stderr
    assert ["theirs"] == [path.name for path in (tmp_path / "venv").iterdir()]


def test_an_incomplete_environment(tmp_path):
    """The environment of an interrupted run is created again."""
    (tmp_path / "venv").mkdir()
    for name in (".making", "rest"):
        (tmp_path / "venv" / name).touch()
    ended = made(tmp_path / "venv")

    assert 0 == ended.returncode, ended.stderr
    assert (tmp_path / "venv" / "bin" / "python").exists()
    assert (tmp_path / "venv" / ".made").exists()
    assert not {".making", "rest"} & {path.name for path in (tmp_path / "venv").iterdir()}
