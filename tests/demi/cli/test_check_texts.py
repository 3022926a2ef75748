"""`demi check` of a bundle that generates, on the command line and in its reports."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from tests.generating_bundles import SLIPS, write_checked_decoder


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    """These tests are no job of GitHub's, though they may run in one."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture
def spoiled(tmp_path):
    """A bundle whose half model slips after seven words; at its export it did not."""
    return write_checked_decoder(tmp_path / "count" / "1", SLIPS, at_export=1.0)


def test_spoiled_weights(demi, spoiled):
    """Exit code 1; stderr has the share and the step, stdout the shares by step."""
    code, out, err = demi("check", spoiled, "--budget", "relative_l2=1")

    assert 1 == code
    assert (
        "tokens differ: count v1: half chooses 71.43% of 7 tokens as FP32 does: the first difference is at step 6"
        in err
    )
    assert "texts of the export" in out
    assert " 5 to 7        3      33.33%" in out
    assert "0 of 1 texts throughout; at the export: 100.00%" in out


def test_a_limit_for_tokens(demi, spoiled):
    """It replaces what the export measured, and leaves the other limits as they are."""
    assert 0 == demi("check", spoiled, "--budget", "tokens=0.7")[0]
    code, out, err = demi("check", spoiled, "--budget", "tokens=0.9")

    assert (1, True) == (code, "budget: 90.00%" in out)
    assert "and the budget demands 90.00%" in err


def test_texts_of_the_user(demi, spoiled, tmp_path):
    """In a table of their own, with the name of the file in what failed."""
    (tmp_path / "prompts.txt").write_text("one two\n")
    code, out, err = demi("check", spoiled, "--data", "prompts.txt", "--budget", "tokens=0.9")

    assert 1 == code
    assert "1 samples of prompts.txt" in out
    assert "(on prompts.txt)" in err


def test_reports(demi, spoiled, tmp_path):
    """JSON, JUnit and Markdown have the same."""
    code, out, _ = demi("check", spoiled, "--json", "--junit", "out.xml", "--markdown", "out.md")
    generation = json.loads(out)[0]["generation"]
    case = ET.parse(tmp_path / "out.xml").find(".//testcase[@name='tokens differ']/failure")

    assert (1, 6, 1.0) == (code, generation["tokens"]["first_difference"], generation["at_export"])
    assert "half chooses 71.43%" in case.get("message")
    assert "| 5 to 7 | 3 | 33.33% |" in (tmp_path / "out.md").read_text()
