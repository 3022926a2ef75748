"""The record of a stable form: in the bundle, in the printed table, and in the plan."""

from __future__ import annotations

import json

import numpy as np

from demi.calibration.gate.check import check_bundle
from demi.cli.main import main
from demi.plan import Reason, read_plan
from tests.models import parse, text

NET = """
net (float[n, 16] x) => (float[n, 16] y)
<float[16, 16] w = {NUMBERS}, float one = {1.0}>
{ [first] h = MatMul(x, w)  [exp] e = Exp(h)  [one] s = Add(e, one)  [log] l = Log(s)  [last] y = MatMul(l, w) }
"""


def test_the_bundle_says_what_was_rewritten(tmp_path, capsys, monkeypatch):
    """Safe, not exact, and by how much; the half model is within its budget of the source, which stays as it was."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    numbers = ", ".join(f"{v:.4f}" for v in rng.normal(0, 1, 256))
    (tmp_path / "net.onnx").write_bytes(text(parse(NET.replace("NUMBERS", numbers))))
    np.savez(tmp_path / "x.npz", x=rng.normal(0, 4, (8, 16)).astype(np.float32))

    assert 0 == main(["export", "--fp16", "net.onnx", "--sample", "x.npz", "-o", "models/net", "--no-report"])
    printed = capsys.readouterr().out
    bundle = tmp_path / "models/net/1"
    (form,) = json.loads((bundle / "accuracy.json").read_text())["stable_forms"]
    plan = read_plan(bundle / "plan.json")

    assert ("softplus", 3) == (form["form"], form["removed"])
    assert 0 < form["difference"] < 1e-6
    assert f"safe, not exact: FP32 answers move by {form['difference']:.1e}" in " ".join(printed.split())
    assert {Reason.STABLE_FORM} == {plan[name].reason for name in form["nodes"]}
    assert check_bundle(bundle)
