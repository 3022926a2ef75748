"""The result of a check as JUnit XML: a suite for each bundle, a case for each gate that was asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from demi.calibration.gate.check import Broken, Outcome
from demi.calibration.gate.gates import Verdict

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not."""


def junit(outcomes: Sequence[Outcome]) -> str:
    """The XML of all bundles. Names may hold anything: what XML cannot hold is written as `\\x01`."""
    suites = ET.Element("testsuites", name="demi check")
    for outcome in outcomes:
        cases = (
            [_broken(outcome)] if isinstance(outcome, Broken) else [_case(outcome.bundle, v) for v in outcome.verdicts]
        )
        suite = ET.SubElement(
            suites,
            "testsuite",
            name=_safe(outcome.bundle),
            tests=str(len(cases)),
            failures=str(sum(case.find("failure") is not None for case in cases)),
            errors=str(sum(case.find("error") is not None for case in cases)),
        )
        suite.extend(cases)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


def _case(bundle: str, verdict: Verdict) -> ET.Element:
    case = ET.Element("testcase", classname=_safe(bundle), name=verdict.gate)
    if not verdict:
        failure = ET.SubElement(case, "failure", message=_safe(verdict.errors[0]), type=verdict.gate)
        failure.text = _safe("\n".join(verdict.errors))
    if verdict.warnings:
        ET.SubElement(case, "system-err").text = _safe("\n".join(f"warning: {line}" for line in verdict.warnings))
    return case


def _broken(broken: Broken) -> ET.Element:
    case = ET.Element("testcase", classname=_safe(broken.bundle), name="opened")
    error = ET.SubElement(case, "error", message=_safe(broken.error.message), type=type(broken.error).__name__)
    error.text = _safe(str(broken.error))
    return case


def _safe(text: str) -> str:
    return _NOT_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
