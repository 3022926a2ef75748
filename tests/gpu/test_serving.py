"""The commands on a GPU: export, serve, check, bench and calibrate."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from demi.bundles.bundle import open_bundle
from demi.cli.main import main
from tests.calibration.bundles import X
from tests.models import MLP, parse, text
from tests.server.processes import serving


def ask(url, x):
    """Return the answer of the model `tiny` to some rows."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    response = httpx.post(f"{url}/v2/models/tiny/infer", json={"inputs": [tensor]}, timeout=30)
    response.raise_for_status()
    (output,) = response.json()["outputs"]
    return np.array(output["data"]).reshape(output["shape"])


@pytest.mark.parametrize("flags", [(), ("--cuda-graphs",), ("--device-memory", "1G", "--strict-device")])
def test_a_bundle_is_served_from_the_gpu(bundle, flags):
    """Outputs are within the budget, the metadata says half, and the metrics have the GPU's memory."""
    golden = open_bundle(bundle).golden()
    with serving(bundle.parent, "--device", "cuda", "--engine", "off", *flags) as server:
        for inputs, outputs in zip(golden.inputs, golden.outputs, strict=True):
            np.testing.assert_allclose(outputs["y"], ask(server.url, inputs["x"]), rtol=2e-2, atol=2e-2)
        metrics = httpx.get(server.url + "/metrics").text

    assert 'nv_gpu_memory_used_bytes{gpu="cuda:0"}' in metrics
    assert 'precision="fp16"' in metrics


def test_bf16_is_served_in_bf16(tmp_path):
    """A GPU serves bf16 in bf16, where a CPU uses the reference."""
    (tmp_path / "tiny.onnx").write_bytes(text(parse(MLP)))
    np.savez(tmp_path / "x.npz", x=X)
    assert 0 == main(
        [
            *("export", "--bf16", str(tmp_path / "tiny.onnx"), "--sample", str(tmp_path / "x.npz")),
            *("--budget", "relative_l2=0.05", "-o", str(tmp_path / "models" / "tiny")),
        ]
    )
    with serving(tmp_path / "models", "--device", "cuda") as server:
        answer = ask(server.url, X)
        metrics = httpx.get(server.url + "/metrics").text

    assert (len(X), 2) == answer.shape
    assert 'precision="bf16"' in metrics


def test_check_and_bench(bundle, capsys):
    """A bundle passes its check, emulated and on the GPU, and is timed in both precisions there."""
    assert 0 == main(["check", str(bundle)])
    assert 0 == main(["check", str(bundle), "--device", "cuda"])
    assert "tiny v1 (fp16 on cuda:0)" in capsys.readouterr().out
    assert 0 == main(["bench", str(bundle), "--device", "cuda", "--batch", "1,4", "--seconds", "0.2", "--json"])
    document = json.loads(capsys.readouterr().out)

    assert "cuda:0" == document["device"]
    assert all(entry["half"]["p50_ms"] > 0 for entry in document["batches"])


def test_nodes_are_measured_on_the_gpu(tmp_path, capsys, monkeypatch):
    """Each node has a time in both precisions, and none of them lacks a half kernel."""
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")  # which the command sets, and no later server should inherit
    (tmp_path / "small.onnx").write_bytes(text(parse(MLP)))
    np.savez(tmp_path / "x.npz", x=X)
    assert 0 == main(
        [
            *("calibrate", str(tmp_path / "small.onnx"), "--sample", str(tmp_path / "x.npz")),
            *("-o", str(tmp_path), "--profile", "--device", "cuda"),
        ]
    )
    costs = json.loads((tmp_path / "small.costs.json").read_text())

    assert {"first", "bias", "act", "second"} == set(costs["seconds"])
    assert "has no half kernels" not in capsys.readouterr().err


def test_missing_gpu(bundle, capsys):
    """Serving on a missing GPU is refused with exit code 3."""
    from demi.errors import DeviceError

    assert DeviceError.exit_code == main(["bench", str(bundle), "--device", "cuda:99"])
    assert "this machine has" in capsys.readouterr().err
