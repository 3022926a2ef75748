"""Models that a person sees something of on the console: an overflow, two plans, a broken bundle, names with markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from demi.bundles.bundle import open_bundle, write_manifest
from demi.bundles.manifest import ACCURACY, MODEL, PLAN
from demi.calibration.report.page import TEMPLATES
from demi.plan import Decision, Precision, Reason, make_plan
from tests.raw_inputs import write_raw_bundle
from tests.server.bundles import GOLDEN_X, MIXED, SCALE, TYPES, damage, write_bundle

DOUBLE = """double (float[batch, 3] x) => (float[batch, 3] y)
<float[1] two = {2.0}>
{ y = Mul(x, two) }"""

DOUBLE_IN_HALF = """double (float[batch, 3] x) => (float[batch, 3] y)
<float[1] two = {2.0}, int64[2] shape = {-1, 3}>
{ product = Mul(x, two)
  half = Cast<to = 10>(product)
  kept = Reshape(half, shape)
  y = Cast<to = 1>(kept) }"""
"""The same in FP16: infinite beyond 32,752, on a CPU too, since Reshape has a half kernel there."""

CLUMSY = """clumsy (float[batch, 3] x) => (float[batch, 3] y)
<float[1] more = {0.1}>
{ tenth = Mul(x, more)
  y = Add(x, tenth) }"""
"""Ten percent more than its reference, whatever it is asked."""

SAME = """clumsy (float[batch, 3] x) => (float[batch, 3] y)
{ y = Identity(x) }"""

TEXT = """text (string[batch, 2] words) => (string[batch, 2] same)
{ same = Identity(words) }"""

NAMED = MIXED.replace("product = Mul", "[product] product = Mul")
"""The same as MIXED, with a name for the node that its plan decides on."""

EVIL = "<img src=x onerror=alert(1)>"
"""Markup that would run a script if a page took it for its own."""

REPORT = (
    f"<!doctype html><title>report</title><h1>The export of mixed</h1><p>{EVIL}</p>"
    "<table class='sortable'><thead><tr><th>node</th><th>error</th></tr></thead>"
    "<tbody><tr><td>b</td><td>10</td></tr><tr><td>a</td><td>9</td></tr></tbody></table>"
    f"<script>{(TEMPLATES / 'sort.js').read_text()}</script><script>document.title = 'ran'</script>"
)
"""A report with the script that sorts tables, as exports write it, and another one."""


def write_repository(root: Path) -> Path:
    """Write models that overflow, err, fail, have two versions, and take texts, images and sounds."""
    write_bundle(
        root / "double" / "1",
        DOUBLE_IN_HALF,
        golden=GOLDEN_X,
        reference=DOUBLE,
        ranges={"x": (-2.0, 2.0)},
    )
    write_bundle(root / "clumsy" / "1", CLUMSY, golden=GOLDEN_X, reference=SAME)
    mixed = write_bundle(root / "mixed" / "1", NAMED, golden=GOLDEN_X, reference=SCALE)
    add_files(mixed, plan("half", evidence=EVIL), report=REPORT)
    other = write_bundle(root / "mixed" / "2", NAMED, version=2, golden=GOLDEN_X, reference=SCALE)
    add_files(other, plan("single"))
    write_bundle(root / "text" / "1", TEXT)
    write_bundle(root / "types" / "1", TYPES)
    for name in ("sentiment", "color", "loud"):
        write_raw_bundle(root / name / "1", name, reference=True)
    damage(write_bundle(root / "damaged" / "1", SCALE, name="damaged") / MODEL)
    return root


def plan(precision: str, evidence: str = "") -> bytes:
    """Return a plan whose only node computes in this precision."""
    reason = Reason.SAFE if precision == "half" else Reason.OVERFLOW
    decision = Decision("product", "Mul", Precision(precision), reason, evidence, 0.5, 0.25)
    return make_plan("fp16", [decision]).to_json()


def add_files(bundle: Path, plan_bytes: bytes, report: str = "") -> None:
    """Add a plan for the node called `product`, measurements and perhaps a report to a bundle."""
    (bundle / PLAN).write_bytes(plan_bytes)
    measured = {
        "predicted_relative_l2": {"y": 0.0004},
        "outputs": [{"output": "y", "relative_l2": 0.0003, "top1": None}],
    }
    (bundle / ACCURACY).write_bytes(msgspec.json.encode(measured))
    if report:
        (bundle / "report.html").write_text(report)
    write_manifest(bundle, replace(open_bundle(bundle, verify=False).manifest, files={}))


def rows(*values: float) -> dict[str, object]:
    """Return an infer request for one row of three equal values each."""
    data = np.repeat(np.float32(values), 3).tolist()
    return {"inputs": [{"name": "x", "shape": [len(values), 3], "datatype": "FP32", "data": data}]}
