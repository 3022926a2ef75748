"""JUnit XML, Markdown and JSON: complete and valid for any names."""

import json
import re
from xml.etree import ElementTree as ET

import markdown_it
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.accuracy.budget import Limits
from demi.accuracy.compare import Comparison, TensorDiff
from demi.calibration.gate.baseline import StoredMeasure
from demi.calibration.gate.baseline_comparison import BaselineComparison, MeasureChange
from demi.calibration.gate.check import Check, UncheckedBundle
from demi.calibration.gate.evaluation import Evaluation
from demi.calibration.gate.gates import CheckFacts, Rules, apply_gates
from demi.calibration.gate.measure import Measure
from demi.calibration.gate.reports.json_report import check_to_json
from demi.calibration.gate.reports.junit import junit
from demi.calibration.gate.reports.markdown import MOST_CHANGES, code, markdown, prose
from demi.errors import BundleError
from demi.plan import Decision, Precision, Reason
from demi.plan_changes import NodeChange

HOSTILE = [
    "a\x00\x1b[31mb",
    "]]><!--",
    "a|b",
    "`code`",
    "<script>alert(1)</script>",
    "[x](y)",
    "two\nlines",
    "\ufffe",
    "&amp;",
]


def check(output="y", node="mul", exceeded=("relative_l2 is 0.5, the budget is at most 0.01",), changes=1):
    """Return a check with one output and nodes that changed precision."""
    diff = TensorDiff(output, 0.5, 1.0, 0.9, None, 3.0, 0, 0, 4, Limits(relative_l2=0.01), tuple(exceeded))
    golden = Evaluation("the golden sets", 1, "00", Comparison((diff,), 1), ())
    moved = NodeChange(
        Decision(node, "Mul", Precision.SINGLE, Reason.OVERFLOW), Decision(node, "Mul", Precision.HALF, Reason.SAFE)
    )
    worse = MeasureChange(
        Measure("relative_l2", 0.5, output=output), StoredMeasure("relative_l2", 0.1, "10%", output), None
    )
    facts = CheckFacts(golden, None, 0.0, BaselineComparison((worse,), (), (moved,) * changes), Rules())
    return Check("models/tiny/1", "tiny", 1, "fp16", facts, (), None, apply_gates(facts))


BROKEN = UncheckedBundle("models/bad", BundleError("no such bundle", where="models/bad", hint="make one"))


class TestJUnit:
    """JUnit: a suite for each bundle, a case for each gate."""

    def test_cases(self):
        """A failed gate is a failure with all lines, a damaged bundle an error, and warnings are in the output."""
        suites = ET.fromstring(junit([check(), BROKEN]))
        first, second = suites

        assert ("5", "2", "0") == (first.get("tests"), first.get("failures"), first.get("errors"))
        assert ("1", "0", "1") == (second.get("tests"), second.get("failures"), second.get("errors"))
        failure = first.find("testcase[@name='over budget']/failure")
        assert failure.get("message").startswith("`y`: relative_l2 is 0.5, the budget is at most 0.01")
        assert "warning: `mul`: FP32 (overflow) -> half (safe)" in first.find(
            "testcase[@name='plan changed']"
        ).findtext("system-err")
        assert "no such bundle\n  in models/bad\nhint: make one" == second.findtext("testcase/error")

    def test_a_gate_that_passed_has_no_failure(self):
        """The reference gate passed and has no failure."""
        case = ET.fromstring(junit([check()])).find("testsuite/testcase[@name='reference differs']")

        assert [] == list(case)

    @given(st.text(st.characters()))
    def test_any_name(self, name):
        """The XML is valid for any name, and contains every character that XML allows."""
        failure = ET.fromstring(junit([check(output=name)])).find(".//failure")

        assert failure.get("message").startswith("`")

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_names(self, name):
        """Characters that XML does not allow are written as escapes."""
        text = junit([check(output=name, node=name), UncheckedBundle(name, BundleError(name))])

        assert 2 == len(ET.fromstring(text))
        assert not re.search("[\x00-\x08\x0b-\x1f\ufffe]", text)


class TestMarkdown:
    """Markdown: a section for each bundle."""

    def test_sections(self):
        """A section has the verdict, the findings, the figures and the plan's changes."""
        text = markdown([check(), BROKEN])

        assert text.startswith("### `tiny` v1 (fp16): **FAILED**\n\n- **over budget**: `y`: relative_l2 is 0.5")
        assert "| `mul` | FP32 (overflow) | half (safe) |" in text
        assert "- **warning**: `mul`: FP32 (overflow)" in text
        assert "### `models/bad`: could not be checked\n\nno such bundle" in text

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_names(self, name):
        """A hostile name adds no cell, line, tag or link: the page has the same elements as with a plain name."""

        def elements(shown):
            page = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(shown)
            return re.findall(r"<(?!/?code)(\w+)", page)

        assert elements(markdown([check()])) == elements(markdown([check(output=name, node=name)]))

    def test_many_changes(self):
        """The first twenty nodes are listed, with the number of the others."""
        text = markdown([check(changes=MOST_CHANGES + 3)])

        assert MOST_CHANGES == text.count("| `mul` |")
        assert "and 3 more" in text

    def test_escaping(self):
        """A plain name is shown as code, any other as text without markup."""
        assert ["`/a.b_c`", "a&#124;b&#96;"] == [code("/a.b_c"), code("a|b`")]
        assert "a&#60;b&#92;n&#91;c&#93;" == prose("a<b\n[c]")


def test_json():
    """The JSON has all figures, and the error of a bundle that could not be checked."""
    first, second = json.loads(msgspec.json.encode([check_to_json(check()), check_to_json(BROKEN)]))

    assert not first["passed"]
    assert ["over budget", "worse than the baseline", "plan changed"] == [each["gate"] for each in first["findings"]]
    assert {"node": "mul", "op_type": "Mul", "changed_precision": True}.items() <= first["baseline"]["plan_changes"][
        0
    ].items()
    assert {"message": "no such bundle", "where": "models/bad", "hint": "make one", "exit_code": 2} == second["error"]
