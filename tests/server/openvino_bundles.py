"""Bundles that OpenVINO serves on every CPU: where there are no half units, it computes in FP32 in their place."""

from __future__ import annotations

from pathlib import Path

from demi.bundles.bundle import open_bundle
from demi.engines.key import make_key
from demi.proofs.record import SCHEMA, Attempt, Proof, Road, Timing, place_of, write_proof
from demi.runtime.openvino.capability import read_cpu
from demi.runtime.openvino.session import openvino_version

HAS_HALF = read_cpu().has_units("fp16")
FP32 = Road("model.onnx", "f32")
HERE = Road("model.onnx", "dynamic") if HAS_HALF else FP32
HERE_HINTED = Road("reference.onnx", "f16" if HAS_HALF else "f32")


def prove(bundle: Path, key: Path, road: Road = HERE, threads: int = 1) -> tuple[str, ...]:
    """Write a proof that a road pays, as if this machine had made it; return the flags of a server that follows it."""
    attempt = Attempt(road, "", {"y": 1e-4}, (Timing(1, 3.0, 1.0),))
    cpu = read_cpu()
    place = place_of(open_bundle(bundle), cpu, openvino_version() or "none", threads)
    write_proof(open_bundle(bundle), Proof(SCHEMA, place, str(cpu), "fp16", (attempt,)), make_key(key))
    return "--runtime", "openvino", "--precision", "auto", "--engine-key", str(key), "--threads", str(threads)
