"""One damage, seen from every side: by clients who are answered right, by whoever watches, by CI, and by whoever asks why."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import onnx_ir as ir
import pytest

from calibration.sessions import save_model
from demi.cli import main
from demi.plan import Precision, make_plan, read_plan
from exporter.passes.lower import apply_plan
from exporter.pipeline import ExportRequest, export_bundle
from exporter.source import SourceOptions
from server.activity import QUIET_S
from tests.calibration.bundles import reseal
from tests.models import parse, text
from tests.server.fakes import message
from tests.server.processes import serving

GROW = """
grow (float[batch, 4] x) => (float[batch, 4] y)
<float up = {128.0}, float down = {0.0078125}, int64[1] axis = {1}>
{
  [grow] big = Mul(x, up)
  [deepen] deep = Unsqueeze(big, axis)
  [flatten] kept = Squeeze(deep, axis)
  [shrink] y = Mul(kept, down)
}
"""
"""Overflows FP16 within, for inputs beyond 511; what only moves elements is computed in half on a CPU as well, so that it
does so there too."""

LARGE = [1.0, -2.0, 3.0, 1024.0]
X = np.float32([LARGE, [4.0, 5.0, 6.0, 7.0]])


@pytest.fixture
def sound(tmp_path) -> Path:
    """A bundle whose plan keeps in FP32 what overflows."""
    path = tmp_path / "grow.onnx"
    path.write_bytes(text(parse(GROW)))
    options = SourceOptions(samples=({"x": X},))
    return export_bundle(ExportRequest(path, tmp_path / "models" / "grow", options=options, report=False)).path


def force_to_half(bundle: Path) -> None:
    """Edit the plan so that every node is half, convert by it, and let the manifest vouch for the result."""
    plan = read_plan(bundle / "plan.json")
    forced = make_plan("fp16", [replace(each, precision=Precision.HALF) for each in plan.decisions.values()])
    (bundle / "plan.json").write_bytes(forced.to_json())
    save_model(apply_plan(ir.load(bundle / "reference.onnx"), forced).model, bundle / "model.onnx")
    reseal(bundle)


def ask(client: httpx.Client, values: list[float]) -> httpx.Response:
    """One row for the model."""
    time.sleep(4 * QUIET_S)  # a client that leaves the device a moment
    answer = client.post("/v2/models/grow/infer", content=message(values, shape=[1, 4]))
    assert 200 == answer.status_code
    return answer


def test_a_plan_that_was_edited_to_overflow(sound, capsys):
    """The guard answers right, the shadow is over the budget, the check fails, and the explanation names the node."""
    assert 0 == main(["check", str(sound)])
    force_to_half(sound)

    with (
        serving(sound.parent.parent, "--shadow", "1") as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        answers = [ask(client, LARGE) for _ in range(40)]
        accuracy = client.get("/v2/models/grow/accuracy").json()

    assert all(np.allclose(LARGE, answer.json()["outputs"][0]["data"]) for answer in answers)
    assert {"fp32"} == {answer.headers["demi-precision"] for answer in answers}
    assert 40 == accuracy["guard"]["reruns"]
    assert "over" == accuracy["state"]

    capsys.readouterr()
    assert 0 != main(["check", str(sound)])
    assert "`y`: 1 of 8 elements are NaN or infinite where FP32 is not" in "".join(capsys.readouterr())
    assert 0 == main(["explain", str(sound)])
    assert "`grow` (Mul) is where the answer breaks: its output reaches 1.31e+05" in capsys.readouterr().out


def test_traffic_that_outgrows_its_calibration(sound):
    """Inputs a hundred times larger than calibration's are counted, at the endpoint and in the metrics."""
    with serving(sound.parent.parent) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        ask(client, LARGE)
        before = client.get("/v2/models/grow/accuracy").json()["ranges"]
        for _ in range(3):
            ask(client, [100 * value for value in LARGE])
        after = client.get("/v2/models/grow/accuracy").json()["ranges"]
        metrics = client.get("/metrics").text

    assert [0, 3] == [found[0]["outside"] for found in (before, after)]
    assert re.search(r'demi_range_drift_total\{.*input="x".*\} 3.0', metrics)
