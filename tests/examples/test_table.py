"""The table of the examples: its lines, and its place in the document."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.domains.__main__ import NAMES, domain_of
from examples.domains.domain import Row, Score, read_row
from examples.domains.table import END, START, table, write
from tests.paths import ROOT

SCORE = Score(fp32=0.95, half=0.9475, low=-0.001, high=0.006, samples=400)
ROW = Row(
    domain="vision",
    data="real: digits",
    scores={"accuracy": {"fp16": SCORE, "bf16": SCORE}, "recall": {"fp16": SCORE, "bf16": SCORE}},
    mebibytes={"fp32": 2.0, "fp16": 1.0, "bf16": 1.0},
    rows_per_second={"fp32": 1200.0, "fp16": 1500.0, "bf16": 1800.0},
    answer="7",
    seconds=31.4,
    machine="2 cores of a CPU",
    date="2026-11-30",
)


def test_a_line_for_each_measure():
    """The first line of an example has all its figures, further ones those of their measure."""
    lines = [line for line in table([ROW]).splitlines() if line.startswith("| ")]
    first, second = (line.split("|") for line in lines[2:])

    assert "| vision | real: digits | accuracy | 0.9500 | 0.9475 (-0.0010 to +0.0060) |" in lines[2]
    assert "| 2.00, 1.00, 1.00 | 1,200, 1,500, 1,800 | 31 |" in lines[2]
    assert len(first) == len(second) == len(lines[0].split("|"))
    assert "Measured on 2 cores of a CPU, 2026-11-30." in table([ROW])


def test_a_row_is_read_as_it_was_written(tmp_path):
    """Nothing is lost in the file."""
    ROW.write(tmp_path / "row.json")

    assert ROW == read_row(tmp_path / "row.json")


def test_the_table_replaces_the_one_before(tmp_path):
    """What stands around it stays."""
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{START}\nold\n{END}\n\nText.\n")
    write(page, [ROW])

    assert page.read_text().startswith(f"# Title\n\n{START}\n\n| domain |")
    assert page.read_text().endswith(f"\n{END}\n\nText.\n")
    assert "old" not in page.read_text()


def test_a_page_without_a_place_is_refused(tmp_path):
    """It is not overwritten."""
    (tmp_path / "page.md").write_text("# Title\n")

    with pytest.raises(ValueError, match="no place for the table"):
        write(tmp_path / "page.md", [ROW])
    assert "# Title\n" == (tmp_path / "page.md").read_text()


def test_the_document_shows_every_example():
    """docs/domains.md has the file of each example, and one row of each, of its data as they are."""
    page = (ROOT / "docs" / "domains.md").read_text()
    made = page.partition(START)[2].partition(END)[0]

    rows = [
        line.split(" | ")[:2] for line in made.splitlines() if line.startswith("| ") and not line.startswith("|  |")
    ]

    shown = {name.removeprefix("| "): data for name, data in rows[2:]}
    assert {name: domain_of(name).data for name in NAMES} == shown
    for name in NAMES:
        assert f"`examples/domains/{name}.py`" in page
        assert Path(ROOT / "examples" / "domains" / f"{name}.py").is_file()
