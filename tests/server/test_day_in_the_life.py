"""A day in the life of a model: exported, served, a worse version tried out as a canary, seen, and rolled back."""

from __future__ import annotations

import threading
import time
from collections import Counter

import httpx
import numpy as np
import pytest

from demi.bundles.traffic import read_traffic
from demi.cli.main import main
from tests.server.bundles import serialized
from tests.server.processes import serving

HEAD = """head (float[batch, 8] x) => (float[batch, 2] y)
{{ scaled = Mul(x, factor)
   summed = MatMul(scaled, weight)
   y = Div(summed, factor) }}"""
INFER = "/v2/models/head/infer"
RULES = "/v2/repository/models/head"


def write_source(path, factor):
    """Write an FP32 model whose inner tensors are `factor` times as large as its answers."""
    weights = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
    rows = ", ".join(f"{value!r}" for value in weights.ravel().tolist())
    text = HEAD.format().replace("{", f"<float[1] factor = {{{factor}}}, float[8, 2] weight = {{{rows}}}>\n{{", 1)
    path.write_bytes(serialized(text))


def export(source, samples, models, *options):
    """Export the next version, as a user does."""
    arguments = ["export", "--fp16", source, "--sample", samples, "-o", models / "head", "--no-optimize", *options]
    assert 0 == main([str(each) for each in arguments])


class Traffic:
    """Clients that keep asking, each request with new inputs, and note every answer."""

    def __init__(self, url):
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(2)]
        self.answers = []

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed):
        numbers = np.random.default_rng(seed)
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self._stop.is_set():
                x = numbers.normal(size=(1, 8)).astype(np.float32)
                body = {"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": x.ravel().tolist()}]}
                answer = http.post(INFER, json=body)
                self.answers.append((answer.status_code, answer.json().get("model_version", answer.text)))
                time.sleep(0.02)  # the shadow runs while the device is idle


def wait_for(condition, seconds=300):
    """Wait until a condition holds, and return what it returned."""
    stop = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < stop, "the condition did not come true"
        time.sleep(0.1)
    return found


@pytest.mark.slow
@pytest.mark.nightly
def test_a_worse_version_is_seen_as_a_canary_and_rolled_back(tmp_path, monkeypatch):
    """The canary's accuracy is over its budget, the stable version's is not, and no request fails on the way."""
    monkeypatch.chdir(tmp_path)
    samples, models = tmp_path / "samples.npz", tmp_path / "models"
    np.savez(samples, x=np.random.default_rng(2).normal(size=(64, 8)).astype(np.float32))
    write_source(tmp_path / "first.onnx", 1.0)
    export(tmp_path / "first.onnx", samples, models)

    with (
        serving(
            models, "--emulate", "--shadow", "1", "--allow-model-control", "--precision", "auto", "--runtime", "auto"
        ) as server,
        Traffic(server.url) as traffic,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        wait_for(lambda: len(traffic.answers) > 20)

        # Version 2 loses digits on purpose: everything in FP16, its inner tensors below the smallest normal number.
        write_source(tmp_path / "second.onnx", 3e-7)
        export(
            tmp_path / "second.onnx", samples, models, "--no-rescale", "--force-half", "*", "--budget", "relative_l2=1"
        )
        tighten_budget(models / "head" / "2", models / "head" / "1")
        http.post(f"{RULES}/canary", json={"version": "2", "percent": 10}).raise_for_status()

        def canary_is_over():
            found = {each["version"]: each for each in http.get("/v2/models/head/versions").json()["versions"]}
            both_known = all(found[version]["accuracy"]["outputs"] for version in ("1", "2"))
            return found if both_known and found["2"]["accuracy"]["state"] == "over" else None

        seen = wait_for(canary_is_over)
        http.post(f"{RULES}/rollback").raise_for_status()
        at_rollback = len(traffic.answers)
        wait_for(lambda: len(traffic.answers) > at_rollback + 30)
        after = http.get("/v2/models/head/versions").json()

    statuses = Counter(status for status, _ in traffic.answers)
    answered = Counter(version for _, version in traffic.answers)
    assert {200: len(traffic.answers)} == statuses, "nothing failed"
    assert 0 < answered["2"] < answered["1"]
    assert {"1"} == {version for _, version in traffic.answers[at_rollback + 2 :]}, "two clients may be in flight"
    assert [90, 10] == [seen[version]["percent"] for version in ("1", "2")]
    assert "over" != seen["1"]["accuracy"]["state"]
    assert all(each["p50_ms"] > 0 and each["failed"] == 0 for each in seen.values())
    worse, better = (seen[version]["accuracy"]["outputs"][0]["relative_l2"]["value"] for version in ("2", "1"))
    assert worse > better
    assert ("1", None) == (after["stable"], after["canary"])
    assert 1 == read_traffic(models / "head").stable


def tighten_budget(bundle, other):
    """Give a bundle the budget of another: an export with this one would have refused to write it."""
    from dataclasses import replace

    from demi.bundles.manifest import MANIFEST, decode, encode

    own, wanted = (decode((each / MANIFEST).read_bytes(), str(each)) for each in (bundle, other))
    (bundle / MANIFEST).write_bytes(encode(replace(own, budget=wanted.budget)))
