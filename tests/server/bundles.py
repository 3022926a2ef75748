"""Tiny bundles with models in ONNX text, written with the code that the exporter uses."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from demi.accuracy.budget import Budget
from demi.bundles.bundle import Golden, write_golden, write_manifest, writing
from demi.bundles.manifest import MODEL, REFERENCE, SCHEMA, BatchSpec, Manifest, Provenance
from demi.calibration.samples import Samples, draw_samples
from demi.exporter.batching.proof import try_rows
from demi.runtime.onnxruntime.session import OrtSession, SessionSettings, open_session
from demi.tensors import Feeds

HEADER = '<ir_version: 8, opset_import: ["" : 18]>\n'

SCALE = """scale (float[batch, 3] x) => (float[batch, 3] y)
<float[3] w = {2.0, 3.0, 4.0}>
{ y = Mul(x, w) }"""
"""y = x * w in FP32."""

MIXED = """mixed (float[batch, 3] x) => (float[batch, 3] y)
<float[3] w = {2.0, 3.0, 4.0}>
{ half = Cast<to = 10>(x)
  half_w = Cast<to = 10>(w)
  product = Mul(half, half_w)
  y = Cast<to = 1>(product) }"""
"""The same in FP16, with casts at both ends."""

HALF = """half (float16[batch, 3] x) => (float16[batch, 3] y)
{ y = Add(x, x) }"""
"""FP16 inputs and outputs."""

ADDS_UP = """adds (float[batch, 3] x) => (float[batch, 3] y)
<int64[1, 2] first = {0, 0}, float[1] one = {1.0}>
{ y = ScatterND<reduction = "add">(x, first, one) }"""
"""Adds one to the first element."""

ADDS_UP_IN_HALF = """adds (float[batch, 3] x) => (float[batch, 3] y)
<int64[1, 2] first = {0, 0}, float[1] one = {1.0}>
{ half = Cast<to = 10>(x)
  half_one = Cast<to = 10>(one)
  sum = ScatterND<reduction = "add">(half, first, half_one)
  y = Cast<to = 1>(sum) }"""
"""The same in FP16: ONNX Runtime's CPU kernel loads, and fails when it runs."""

LOGARITHM = """logarithm (float[batch, 3] x) => (float[batch, 3] y)
{ y = Log(x) }"""
"""Minus infinity for 0 and NaN for negative numbers."""

TYPES = """types (bool[n] flag, int8[n] small, int64[n] large, uint64[n] huge, float16[n] half, double[n] wide, string[n] text)
=> (bool[n] flag_out, int8[n] small_out, int64[n] large_out, uint64[n] huge_out, float16[n] half_out, double[n] wide_out,
    string[n] text_out)
{ flag_out = Identity(flag)
  small_out = Identity(small)
  large_out = Identity(large)
  huge_out = Identity(huge)
  half_out = Identity(half)
  wide_out = Identity(wide)
  text_out = Identity(text) }"""
"""Every datatype, returned unchanged; no batch axis."""

FRAGILE = """fragile (float[batch, 4] x, int64[rank] shape) => (float[batch, columns] y)
{ y = Reshape(x, shape) }"""
"""Fails at run time when the elements do not fit the shape."""

SLOW = """slow (int64 turns, float[256, 256] x) => (float[256, 256] y)
{ always = Constant<value = bool {1}>()
  y = Loop(turns, always, x) <body = body (int64 turn, bool going, float[256, 256] before)
    => (bool still, float[256, 256] after)
    { still = Identity(going)
      product = MatMul(before, before)
      after = Tanh(product) }> }"""
"""Runs as long as its first input says: some milliseconds per iteration."""

GOLDEN_X: Feeds = {"x": np.ones((2, 3), np.float32)}


def write_bundle(
    path: Path,
    text: str,
    *,
    name: str | None = None,
    version: int = 1,
    precision: str = "fp16",
    golden: Feeds | None = None,
    reference: str | None = None,
    batch: BatchSpec | None = None,
    ranges: dict[str, tuple[float, float]] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a bundle at `path` with the model in ONNX text; its name defaults to that of the graph."""
    session = open_session(serialized(text))
    manifest = Manifest(
        schema=SCHEMA,
        name=name or text.split()[0],
        version=version,
        precision=precision,
        inputs=session.inputs,
        outputs=session.outputs,
        batch=batch or batch_of(session, text),
        budget=Budget(),
        provenance=Provenance("2026-11-23T00:00:00Z", "model.pt", "0" * 64, {}, "none"),
        input_ranges=ranges or {},
    )
    with writing(path) as draft:
        (draft / MODEL).write_bytes(serialized(text))
        for place, content in (files or {}).items():
            (draft / place).parent.mkdir(exist_ok=True)
            (draft / place).write_bytes(content)
        if reference is not None:
            (draft / REFERENCE).write_bytes(serialized(reference))
        if golden is not None:
            write_golden(draft, Golden([golden], [_fp32_first(session, reference).run(golden)]))
        write_manifest(draft, manifest)
    return path


def batch_of(session: OrtSession, text: str) -> BatchSpec:
    """Return the batching that an export would prove for the model."""
    if "batch" not in text:
        return BatchSpec(free=False)
    if "string" in text:
        words = {spec.name: np.array([["a", "b"], ["c", "d"]], object) for spec in session.inputs}
        return try_rows(session, Samples((words,), "words"), max_size=8)
    return try_rows(session, draw_samples(session.inputs, seed=0), max_size=8)


def _fp32_first(session: OrtSession, reference: str | None) -> OrtSession:
    """Return the session that computes golden outputs: the reference's, if it accepts the inputs."""
    exact = session_of(reference) if reference is not None else session
    return exact if exact.inputs == session.inputs else session


@functools.cache
def turns_per_second() -> float:
    """Return the loop iterations per second of SLOW on this machine, on one thread."""
    session = open_session(serialized(SLOW), settings=SessionSettings(threads=1))
    x = np.zeros((256, 256), np.float32)
    session.run({"turns": np.array(10), "x": x})
    started = time.perf_counter()
    session.run({"turns": np.array(100), "x": x})
    return 100 / (time.perf_counter() - started)


def slow_turns(seconds: float) -> int:
    """Return the input of SLOW that keeps it busy for about that many seconds."""
    return int(turns_per_second() * seconds)


def serialized(text: str) -> bytes:
    """Return the bytes of an ONNX file for a model in ONNX text, checked."""
    model = onnx.parser.parse_model(HEADER + text)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def session_of(text: str) -> OrtSession:
    """Open a CPU session for a model in ONNX text."""
    return open_session(serialized(text))


def write_repository(root: Path) -> Path:
    """Write a folder with each model above, `scale` in two versions, and one damaged bundle."""
    write_bundle(root / "scale" / "1", SCALE, golden=GOLDEN_X)
    write_bundle(root / "scale" / "2", SCALE, version=2, golden=GOLDEN_X)
    write_bundle(root / "mixed" / "1", MIXED, golden=GOLDEN_X)
    write_bundle(root / "half" / "1", HALF)
    write_bundle(root / "logarithm" / "1", LOGARITHM, golden=GOLDEN_X, reference=LOGARITHM)
    write_bundle(root / "types" / "1", TYPES)
    write_bundle(root / "fragile" / "1", FRAGILE)
    write_bundle(root / "slow" / "1", SLOW)
    damage(write_bundle(root / "damaged" / "1", SCALE, name="damaged") / MODEL)
    return root


def damage(path: Path) -> None:
    """Change the last byte of a file."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
