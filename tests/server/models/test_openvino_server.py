"""`demi serve` with OpenVINO does what it does with ONNX Runtime: padding, instances, deadlines, drain, guard, shadow,
stalled runs.

Real servers, and clients over HTTP. Where the CPU has no half units, OpenVINO computes the same models in FP32.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from demi.bundles.manifest import BatchSpec, PadSpec
from demi.runtime.openvino.session import openvino_version
from tests.server.bundles import write_bundle
from tests.server.fakes import PROOF
from tests.server.openvino_bundles import FP32, HERE, HERE_HINTED, prove
from tests.server.processes import ServerProcess, serving

pytestmark = pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")

SUMS = """sums (float[batch, n] x) => (float[batch, n] y)
<int64[1] axes = {1}>
{ total = ReduceSum<keepdims = 1>(x, axes)
  y = Add(x, total) }"""
"""Every element plus the sum of its row: zeros at its end change nothing."""

LAYERS = 40
SLOW = """slow (float[batch, n] x) => (float[batch, n] y)
{ column = Transpose<perm = [1, 0]>(x)
  w = MatMul(column, x)
  h0 = Tanh(w)
  BODY
  y = MatMul(x, hLAYERS) }"""
SLOW = SLOW.replace("LAYERS", str(LAYERS)).replace(
    "BODY", "\n  ".join(f"p{n} = MatMul(h{n}, w)\n  h{n + 1} = Tanh(p{n})" for n in range(LAYERS))
)
"""Takes as long as products of n x n matrices do, so that it loads at once and is slow for a long row."""
LONG = [0.001] * 900

OVERFLOWS = """overflows (float[batch, 3] x) => (float[batch, 3] y)
<float huge = {3e38}> { a = Mul(x, huge) b = Add(a, a) y = Div(b, huge) }"""
"""Infinite where its reference is 2 x."""
DOUBLES = "doubles (float[batch, 3] x) => (float[batch, 3] y) { y = Add(x, x) }"

X = {"x": np.array([[1, 2, 3]], np.float32)}


def body(row: list[float], **parameters: object) -> dict[str, object]:
    """Return an infer request for one row."""
    return {
        "inputs": [{"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row}],
        "parameters": parameters,
    }


def ask(server: ServerProcess, name: str, row: list[float], **parameters: object) -> httpx.Response:
    """Send one request."""
    return httpx.post(f"{server.url}/v2/models/{name}/infer", json=body(row, **parameters), timeout=30)


def statistics(server: ServerProcess, name: str) -> dict[str, int]:
    """Return the counts of a model."""
    return httpx.get(f"{server.url}/v2/models/{name}/stats", timeout=30).json()["model_stats"][0]


def until(condition) -> None:
    """Wait for a condition."""
    stop = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < stop, "the condition did not come true"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Iterator[ServerProcess]:
    """A server with the slow model, which stops abandoned runs soon."""
    folder = tmp_path_factory.mktemp("slow")
    path = write_bundle(folder / "b", SLOW, reference=SLOW, golden=X)
    with serving(path, *prove(path, folder / "key", FP32), "--stop-run", "0.1") as server:
        assert 200 == ask(server, "slow", [1, 2, 3]).status_code
        yield server


def test_rows_of_different_lengths_share_a_run(tmp_path):
    """They are padded, by two instances, and each answer has the length and the values of its own row."""
    batch = BatchSpec(True, 8, PadSpec(("n",), {"x": 0}), PROOF)
    path = write_bundle(tmp_path / "b", SUMS, reference=SUMS, golden=X, batch=batch)
    rows = [[1.0] * size for size in range(1, 9)]
    flags = ("--instances", "2", "--max-queue-delay-us", "2000000")
    with serving(path, *prove(path, tmp_path / "key", HERE), *flags) as server:
        with httpx.Client(base_url=server.url, timeout=30) as client, ThreadPoolExecutor(len(rows)) as pool:
            found = list(pool.map(lambda row: client.post("/v2/models/sums/infer", json=body(row)).json(), rows))
        counts = statistics(server, "sums")
        told = httpx.get(f"{server.url}/v2/models/sums").json()["parameters"]

    assert [[1.0 + len(row)] * len(row) for row in rows] == [each["outputs"][0]["data"] for each in found]
    assert counts["execution_count"] < counts["inference_count"] == len(rows)
    assert "openvino" == told["runtime"]


def test_a_deadline(slow):
    """A request that is not answered in time gets 504, and the next one its answer."""
    assert 504 == ask(slow, "slow", LONG, timeout=1000).status_code
    until(lambda: ask(slow, "slow", [1, 2, 3]).status_code == 200)


def test_a_stalled_run(slow):
    """A run whose client has left is stopped, as the log says, and the next request is answered as any other."""
    expected = ask(slow, "slow", [1, 2, 3]).json()["outputs"]
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{slow.url}/v2/models/slow/infer", json=body(LONG), timeout=0.1)

    assert slow.said("a stalled run is being stopped")
    until(lambda: ask(slow, "slow", [1, 2, 3]).status_code == 200)
    assert expected == ask(slow, "slow", [1, 2, 3]).json()["outputs"]


def test_the_guard(tmp_path):
    """An answer that half alone made infinite comes from FP32 in ONNX Runtime."""
    path = write_bundle(tmp_path / "b", OVERFLOWS, reference=DOUBLES, golden={"x": np.zeros((1, 3), np.float32)})
    with serving(path, *prove(path, tmp_path / "key", FP32), "--guard") as server:
        answers = [ask(server, "overflows", row).json() for row in ([0, 0, 0], [1, 2, 3])]

    assert [[0, 0, 0], [2, 4, 6]] == [answer["outputs"][0]["data"] for answer in answers]
    assert ["fp16", "fp32"] == [answer["parameters"]["precision"] for answer in answers]


@pytest.mark.parametrize("road", [HERE, HERE_HINTED], ids=["typed", "hint"])
def test_the_shadow(tmp_path, road):
    """Sampled requests are compared with FP32 in ONNX Runtime."""
    path = write_bundle(tmp_path / "b", DOUBLES, reference=DOUBLES, golden=X)
    with serving(path, *prove(path, tmp_path / "key", road), "--shadow", "1") as server:
        ask(server, "doubles", [1, 2, 3])
        until(lambda: httpx.get(f"{server.url}/v2/models/doubles/accuracy").json()["samples"])


def test_draining(tmp_path):
    """After SIGTERM, a run in progress is answered, new requests are refused, and the server ends with 0."""
    path = write_bundle(tmp_path / "b", SLOW, reference=SLOW, golden=X)
    with serving(path, *prove(path, tmp_path / "key", FP32)) as server:
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(ask(server, "slow", LONG).status_code))
        thread.start()
        until(lambda: "demi_requests_in_flight" in (text := httpx.get(f"{server.url}/metrics").text) and _busy(text))
        server.process.send_signal(signal.SIGTERM)
        thread.join(30)

        assert [200] == answers
        assert 0 == server.wait()


def _busy(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.startswith("demi_requests_in_flight{")]
    return any(float(line.rsplit(" ", 1)[1]) > 0 for line in lines)
