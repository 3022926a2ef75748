"""Demi as others get it: a wheel, built from a copy of the checkout, and commands away from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.readme import ROOT

FOLDERS = ("demi", "exporter", "calibration", "server", "training")
"""Folders of the source, all of which is imported as `demi`."""


def build_wheel(source: Path) -> Path:
    """The wheel, built from a copy in `source`: a checkout's own build folder may hold what is long gone."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source), cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def run(
    *command: str, cwd: Path, code: int = 0, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command to its end, away from the checkout and from this environment's settings."""
    ended = subprocess.run(
        command, cwd=cwd, env={**plain_environ(), **(environ or {})}, capture_output=True, text=True, timeout=600
    )
    assert code == ended.returncode, f"{' '.join(command)}:\n{ended.stdout}{ended.stderr}"
    return ended


def plain_environ() -> dict[str, str]:
    """This environment without what Python or Demi would read from it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DEMI_"))}
