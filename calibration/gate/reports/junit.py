"""JUnit XML report of a check: a suite for each bundle, a case for each gate that applies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from demi.calibration.gate.check import Outcome, UncheckedBundle
from demi.calibration.gate.gates import GateResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, escaped or not."""


def junit(outcomes: Sequence[Outcome]) -> str:
    """Return the XML for all bundles. Names may hold any character: those that XML cannot hold are written as `\\x01`."""
    suites = ET.Element("testsuites", name="demi check")
    for outcome in outcomes:
        cases = (
            [_unchecked(outcome)]
            if isinstance(outcome, UncheckedBundle)
            else [_case(outcome.bundle, result) for result in outcome.gate_results]
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


def _case(bundle: str, result: GateResult) -> ET.Element:
    case = ET.Element("testcase", classname=_safe(bundle), name=result.gate)
    if not result:
        failure = ET.SubElement(case, "failure", message=_safe(result.errors[0]), type=result.gate)
        failure.text = _safe("\n".join(result.errors))
    if result.warnings:
        ET.SubElement(case, "system-err").text = _safe("\n".join(f"warning: {line}" for line in result.warnings))
    return case


def _unchecked(outcome: UncheckedBundle) -> ET.Element:
    case = ET.Element("testcase", classname=_safe(outcome.bundle), name="opened")
    error = ET.SubElement(case, "error", message=_safe(outcome.error.message), type=type(outcome.error).__name__)
    error.text = _safe(str(outcome.error))
    return case


def _safe(text: str) -> str:
    return _NOT_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
