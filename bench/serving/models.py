"""The benchmark's model, small enough that the server dominates, and its bare loop without a server."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.serving.turns import Turn
from demi.accuracy.budget import Budget
from demi.bundles.bundle import Bundle, Golden, write_golden, write_manifest, writing
from demi.bundles.manifest import MODEL, SCHEMA, Manifest, Provenance
from demi.calibration.samples import Samples
from demi.exporter.batching.proof import try_rows
from demi.runtime.base import CPU, Device
from demi.runtime.onnxruntime.session import SessionSettings, open_session
from demi.server.scheduling.stacking import concatenate
from demi.tensors import Feeds


def measure_limit(bundle: Bundle, row: Feeds, rows: int, threads: int, seconds: float, device: Device = CPU) -> Turn:
    """Measure one turn of the model without a server, in batches of `rows` rows."""
    session = open_session(bundle.model_path, device, SessionSettings(threads=threads))
    feeds = concatenate([row] * rows)
    session.run(feeds)
    latencies = []
    cpu, started = time.process_time(), time.perf_counter()
    while (before := time.perf_counter()) - started < seconds:
        session.run(feeds)
        latencies.append(time.perf_counter() - before)
    return Turn(latencies, time.perf_counter() - started, time.process_time() - cpu, rows=rows)


def write_mlp(path: Path, hidden: int = 128) -> Path:
    """Write a bundle of an MLP with 784, `hidden` and 10 neurons, a common model of server benchmarks."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / 28).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["logits"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [weights("w1", 784, hidden), weights("b1", hidden), weights("w2", hidden, 10), weights("b2", 10)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    session = open_session(model)
    x = {"x": rng.standard_normal((4, 784)).astype(np.float32)}
    provenance = Provenance("2026-01-01T00:00:00Z", "mlp.onnx", "0" * 64, {}, "none")
    with writing(path) as draft:
        (draft / MODEL).write_bytes(model)
        write_golden(draft, Golden([x], [session.run(x)]))
        batch = try_rows(session, Samples((x,), "the golden inputs"), max_size=64)
        inputs, outputs = session.inputs, session.outputs
        write_manifest(draft, Manifest(SCHEMA, "mlp", 1, "fp16", inputs, outputs, batch, Budget(), provenance))
    return path
