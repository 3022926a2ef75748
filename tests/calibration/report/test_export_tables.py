"""Tables of an export's report: ranges with histograms, groups that were measured together, and sorting."""

from __future__ import annotations

import html
import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from demi.calibration.profile import Range, range_of
from demi.calibration.report.export import export_report
from demi.calibration.report.page import digest
from demi.calibration.report.ranges import range_rows
from demi.float16 import BF16, FP16
from demi.plan import Decision, Precision, Reason, make_plan
from tests.browser import CHROMIUM, look, needs_browser
from tests.calibration.report.test_reports import HOSTILE, SORTS, facts

LARGE = range_of(np.float32([1e6, 2.0, -3.0, 40000.0]))
SMALL = range_of(np.float32([1e-6, 2e-6, 1.0, 0.0]))
USUAL = range_of(np.float32([1.0, -2.0, 0.5]))


def grouped():
    """Return facts with two nodes measured together and one alone, and a tensor of each kind."""
    half = [
        Decision("conv", "Conv", Precision.HALF, Reason.SAFE, "", 0.3, 0.36),
        Decision("a", "Relu", Precision.HALF, Reason.SAFE, "", 0.28, 0.32, group=4),
        Decision("b", "Add", Precision.HALF, Reason.SAFE, "", 0.28, 0.32, group=4),
        Decision("flat", "Reshape", Precision.HALF, Reason.SAFE, "", 0.28, 0.0, group=4),
    ]
    ranges = {"usual": USUAL, HOSTILE: LARGE, "small": SMALL, "empty": Range()}
    return replace(facts(), plan=make_plan("fp16", half), ranges=ranges)


class TestRanges:
    """Rows of the table of ranges."""

    def test_the_closest_to_the_limits_come_first(self):
        """A tensor that overflows, one with small values, and a harmless one; empty tensors have no row."""
        rows = range_rows({"usual": USUAL, "small": SMALL, "large": LARGE, "empty": Range()}, FP16)

        assert ["large", "small", "usual"] == [row.tensor for row in rows]
        assert [(0.25, 0.0), (0.0, 2 / 3), (0.0, 0.0)] == [(row.overflows, row.subnormal) for row in rows]

    def test_bf16_holds_what_fp16_does_not(self):
        """With BF16's limits nothing overflows or is too small."""
        assert [(0.0, 0.0)] * 2 == [
            (row.overflows, row.subnormal) for row in range_rows({"large": LARGE, "small": SMALL}, BF16)
        ]

    def test_histograms_show_every_value(self):
        """One column for each power of 2 that occurs; those outside FP16's normal numbers have another colour."""
        large, small = range_rows({"large": LARGE, "small": SMALL}, FP16)

        assert (2, 1) == (large.histogram.count("--half"), large.histogram.count("--bad"))
        assert (1, 2) == (small.histogram.count("--half"), small.histogram.count("--bad"))

    def test_many_tensors_are_cut_short(self):
        """The table has at most forty rows."""
        assert 40 == len(range_rows({str(number): USUAL for number in range(100)}, FP16))

    def test_names_are_escaped(self):
        """A tensor's name cannot add markup."""
        assert "<script>alert" not in export_report(grouped())


def test_a_group_is_one_row_and_one_bar():
    """Its members are listed, its share is theirs together, and a node that rounds nothing is not among them."""
    page = export_report(grouped())

    assert "2 nodes, measured together" in page
    assert re.findall(r'data-value="(0\.\d+)">\d+\.\d%', page)[:2] == ["0.64", "0.36"]
    assert "<code>flat</code>" not in page
    assert "a and 1 more" in page, "the bar's label"


def test_top1_is_a_column_only_where_there_are_scores():
    """A segmentation map has none."""
    scores = export_report(facts())
    comparison = facts().comparison
    without = replace(comparison, outputs=tuple(replace(each, top1=None) for each in comparison.outputs))

    assert ">top-1<" in scores
    assert ">top-1<" not in export_report(replace(facts(), comparison=without))


CLICK = """<!doctype html><meta charset="utf-8"><iframe id="page" width="1200" height="900" srcdoc="{page}"></iframe>
<script>
document.getElementById("page").onload = event => {{
  const page = event.target.contentDocument;
  const table = [...page.querySelectorAll("table.sortable")].find(each => each.tHead.innerText.includes("{table}"));
  const buttons = [...table.tHead.querySelectorAll("button")];
  const orders = [];
  for (const column of {clicks}) {{
    buttons[column].click();
    orders.push([...table.tBodies[0].rows].map(row => row.cells[0].innerText.trim()).join("|"));
  }}
  const seen = document.createElement("pre");
  seen.id = "orders";
  seen.textContent = orders.join("\\n");
  document.body.append(seen);
}};
</script>"""


@needs_browser
class TestInABrowser:
    """Sorting, and the pages as people see them."""

    @pytest.mark.parametrize("width", [400, 1200])
    def test_fits(self, width, tmp_path):
        """The page's own script is allowed, and nothing scrolls sideways but the tables themselves."""
        seen = look(export_report(grouped()), tmp_path, width)

        assert ([], [], SORTS) == (seen.complaints, seen.requests, seen.scripts)
        assert seen.reach <= seen.width
        assert "Ranges of the tensors" in seen.text

    def test_a_click_sorts_by_number_and_a_second_one_turns_it_round(self, tmp_path):
        """Lowest values are compared as numbers, not as text; names as text."""
        page = CLICK.format(page=html.escape(export_report(grouped())), table="below normal", clicks="[1, 1, 0]")
        (tmp_path / "page.html").write_text(page)
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=5000", "--dump-dom"]
        done = subprocess.run(
            [*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120
        )
        found = re.search(r'<pre id="orders">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]

        hostile = HOSTILE.replace("|", "")
        assert [[hostile, "usual", "small"], ["small", "usual", hostile], [hostile, "small", "usual"]] == [
            line.split("|") for line in html.unescape(found[1]).splitlines()
        ]


def test_the_policy_allows_the_script_by_its_digest():
    """Any other script is refused by the browser."""
    page = export_report(facts())
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)

    assert script is not None
    assert f"script-src '{digest(script[1])}'" in page
