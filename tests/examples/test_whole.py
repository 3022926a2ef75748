"""The examples from beginning to end; `make wild` runs them all."""

from __future__ import annotations

import subprocess
import sys

import pytest

from examples.demo import DemoError
from examples.domains.__main__ import domain_of
from examples.domains.domain import read_row
from examples.domains.steps import tell
from tests.examples.test_tasks import EVERY
from tests.paths import ROOT

LEAST = {
    "language": 0.6,
    "vision": 0.9,
    "speech": 0.7,
    "recommendation": 0.1,
    "medical": 0.85,
    "driving": 0.7,
    "service": 0.5,
}
"""The least of each example's measures in FP32 that shows that it has learned its task."""
MOST_LOSS = 0.02
"""The most that a measure may lose in FP16."""


@pytest.mark.wild
@pytest.mark.parametrize("name", EVERY)
def test_a_whole_example(name, tmp_path):
    """It ends with 0 within two minutes, has learned its task, and keeps it in half."""
    command = [sys.executable, "-m", f"examples.domains.{name}", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert 0 == done.returncode, done.stdout + done.stderr
    row = read_row(tmp_path / name / "row.json")

    for scores in row.scores.values():
        assert scores["fp16"].fp32 >= LEAST[name]
        assert scores["fp16"].fp32 - scores["fp16"].half <= MOST_LOSS
    assert row.mebibytes["fp16"] < 0.75 * row.mebibytes["fp32"]


def test_a_folder_that_exists_is_left_alone(tmp_path):
    """Nothing is removed or mixed with an earlier run."""
    (tmp_path / "vision").mkdir()

    with pytest.raises(DemoError, match="exists: remove it"):
        tell(domain_of("vision"), tmp_path)
