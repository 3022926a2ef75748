"""The workflows of this repository: valid, and every target of `make` that they run is there."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.paths import ROOT
from tests.test_action import validate

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow(path, tmp_path):
    """GitHub's schema passes it, and would not pass anything; actions are pinned by commit; the targets exist."""
    text = path.read_text()
    scripts = [step["run"] for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"\bmake (\w+)", "\n".join(scripts))
    (tmp_path / "broken.yml").write_text(text.replace("runs-on:", "runs_on:"))

    assert 0 == validate("vendor.github-workflows", path).returncode
    assert 1 == validate("vendor.github-workflows", tmp_path / "broken.yml").returncode
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in re.findall(r"uses: (\S+)", text))
    assert targets
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)


def test_there_is_a_nightly_one():
    """The long tests, the examples and the wild models run every night."""
    (text,) = (path.read_text() for path in WORKFLOWS if path.name == "nightly.yml")

    assert {"make nightly", "make examples", "make wild"} <= set(re.findall(r"make \w+", text))
