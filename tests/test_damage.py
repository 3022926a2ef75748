"""Damaged bundles from end to end: whatever is done to one, the server, its accuracy, `check` and `explain` say so."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from demi.cli.main import main
from demi.server.accuracy.window import MIN_SAMPLES
from demi.server.scheduling.activity import QUIET_S
from tests.calibration.bundles import edit_model, export, force_half, scale_weight
from tests.server.fakes import message
from tests.server.processes import ServerProcess, serving

OVERFLOW = """
overflow (float[batch, 3] x) => (float[batch, 3, 1] y)
<float hundred = {100.0}, int64[3] column = {0, 3, 1}>
{
  [grow] big = Mul(x, hundred)
  [stand] y = Reshape(big, column)
}
"""
"""x = 1,024 makes 102,400. ONNX Runtime's CPU stores it in half, and loses it, only since Reshape has a half kernel there."""

EPSILON = """
epsilon (float[batch, 3] x) => (float[batch, 3] y)
<float eps = {1e-9}>
{
  [guard] safe = Add(x, eps)
  [divide] y = Div(x, safe)
}
"""
"""0 where x is 0; without the epsilon it is NaN."""

LARGE = np.float32([[1024.0, 3.0, 1.0], [2.0, 3.0, 4.0]])
ROWS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles that were sound when they were written, each damaged in its own way, with manifests that vouch for them."""
    root = tmp_path_factory.mktemp("damaged")
    force_half(export(root, OVERFLOW, name="overflow", inputs={"x": LARGE}))
    force_half(export(root, EPSILON, name="epsilon", inputs={"x": np.float32([[0.0, 1.0, 2.0]])}))
    edit_model(export(root, name="weight", inputs={"x": ROWS}), scale_weight("w1_fp16", 50))
    export(root, name="sound", inputs={"x": ROWS})
    return root


@pytest.fixture(scope="module")
def server(models: Path) -> ServerProcess:
    """A server of all of them, which compares every request with FP32."""
    with serving(models, "--shadow", "1") as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> httpx.Client:
    """A client of that server."""
    with httpx.Client(base_url=server.url, timeout=20) as made:
        yield made


def ask(client: httpx.Client, model: str, x: np.ndarray) -> httpx.Response:
    """The answer to one request."""
    return client.post(f"/v2/models/{model}/infer", content=message(x.ravel().tolist(), shape=x.shape))


def compared(client: httpx.Client, model: str, x: np.ndarray, samples: int = 1) -> dict[str, object]:
    """Return a model's accuracy once its requests, all alike, were compared so many times or are over the budget."""
    for _ in range(20 * samples):
        assert 200 == ask(client, model, x).status_code
        found = client.get(f"/v2/models/{model}/accuracy").json()
        if found["state"] == "over" or found["samples"] >= samples:
            return found
        time.sleep(4 * QUIET_S)  # a sample runs when the device is idle
    raise AssertionError("too few requests were compared")


class TestOverflow:
    """A node that overflows in FP16, which an edited plan forces to half."""

    def test_the_guard_answers_in_fp32(self, client):
        """The client gets the right answer and the precision that computed it."""
        answer = ask(client, "overflow", LARGE[:1])

        assert ([102_400, 300, 100], {"precision": "fp32"}) == (
            answer.json()["outputs"][0]["data"],
            answer.json()["parameters"],
        )

    def test_the_shadow_is_over_the_budget(self, client):
        """The unguarded answer is compared, and one is enough."""
        found = compared(client, "overflow", LARGE[:1])

        assert "over" == found["state"]
        assert "`y`: 1 elements are not finite or differ" in found["changes"][0]["reasons"]

    def test_check_fails(self, models, capsys):
        """The golden sets show it, under the emulator."""
        assert 1 == main(["check", str(models / "overflow")])
        assert "over budget: overflow v1: `y`: 1 of 6 elements are NaN or infinite" in capsys.readouterr().err

    def test_explain_names_the_node(self, models, capsys):
        """It is the first whose output is not finite, and the plan's reason of old stands beside it."""
        assert 0 == main(["explain", str(models / "overflow"), "--json"])
        found = json.loads(capsys.readouterr().out)

        assert "grow" == found["first_non_finite"]
        assert "overflow" == next(node["reason"] for node in found["nodes"] if node["node"] == "grow")


class TestWeight:
    """One number of one weight is another."""

    def test_the_shadow_is_over_the_budget(self, client):
        """The answers are finite and wrong; sampled requests add up to a verdict."""
        found = compared(client, "weight", ROWS, MIN_SAMPLES)

        assert "over" == found["state"]
        assert found["changes"][0]["reasons"][0].startswith("`y`: relative_l2 is ")

    def test_check_fails(self, models, capsys):
        """The check on the golden sets fails as well."""
        assert 1 == main(["check", str(models / "weight")])
        assert "over budget: weight v1: `y`: relative_l2 is " in capsys.readouterr().err


class TestEpsilon:
    """An epsilon that half flushes to zero, which an edited plan forces to half."""

    def test_check_fails(self, models, capsys):
        """0 / 0 is NaN where FP32 answers 0."""
        assert 1 == main(["check", str(models / "epsilon")])
        assert "over budget: epsilon v1: `y`: 1 of 3 elements are NaN or infinite" in capsys.readouterr().err

    def test_explain_names_the_epsilon(self, models, capsys):
        """The node that adds it is named, not the one where the NaN appears."""
        main(["explain", str(models / "epsilon")])

        assert "its constant `eps_fp16` is 0, where `eps` is 1e-09 in FP32" in capsys.readouterr().out


class TestTraffic:
    """Inputs a hundred times larger than what was measured on: the model is sound, the world has changed."""

    def test_requests_beyond_calibration_are_counted(self, client):
        """At the accuracy endpoint and in the metrics; ordinary requests are not among them."""
        for factor in (1, 100, 100):
            ask(client, "sound", ROWS * np.float32(factor))
        (ranges,) = client.get("/v2/models/sound/accuracy").json()["ranges"]

        assert ("x", 2) == (ranges["input"], ranges["outside"])
        assert (
            'demi_range_drift_total{input="x",model="sound",precision="fp16-in-fp32",version="1"} 2.0'
            in client.get("/metrics").text
        )

    def test_a_sound_bundle_passes(self, models, capsys):
        """All of this is about damage: without it nothing is found."""
        assert 0 == main(["check", str(models / "sound")])
