"""Half in OpenVINO on this CPU: Demi beside Triton with the same OpenVINO model, and beside both with FP32 in ONNX Runtime.

Where the CPU has no half units, OpenVINO computes the FP32 model in FP32, so that the servers can still be compared.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.serving.load import measure_http
from bench.serving.requests import first_row, http_request
from bench.serving.servers import serving
from bench.serving.setup import Setup
from bench.serving.subjects import Subject, triton
from bench.serving.turns import Turns, line, table
from bench.sizes import with_length
from demi.bundles.bundle import Bundle, open_bundle
from demi.bundles.manifest import REFERENCE
from demi.engines.key import key_path, make_key
from demi.proofs.prove import proof_of
from demi.proofs.record import SCHEMA, Attempt, Proof, Road, Timing, place_of, write_proof
from demi.runtime.openvino.capability import read_cpu
from demi.runtime.openvino.options import OvSettings, cpu_options
from demi.runtime.openvino.session import openvino_version
from demi.tensors import Feeds

TOKENS = 128
"""Elements along the padded axes of a row."""


def openvino(bundle: Bundle, setup: Setup, connections: int = 32) -> Iterator[str]:
    """Measure the same model in OpenVINO behind both servers, and FP32 in ONNX Runtime; skip a bundle without FP32."""
    if bundle.reference_path is None or openvino_version() is None:
        return
    cpu, road = read_cpu(), _road(bundle, setup.threads)
    yield f"{cpu}; OpenVINO {openvino_version()} runs `{road.file}` in {road.hint}; {connections} connections\n"
    yield table(["server", "runtime", "requests/s", "of Demi's OpenVINO", "p50 ms", "p99 ms", "CPU ms", "errors"])
    request = [http_request(bundle, resized(bundle, TOKENS), binary=True)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            (subject.name, runtime): subject.server
            for runtime, subject in _subjects(bundle, setup, road, folder, stack)
        }
        measures = {
            key: partial(measure_http, server, request, connections, setup.seconds) for key, server in servers.items()
        }
        for measure in measures.values():  # warms shapes, connections and allocators
            measure()
        found = {key: Turns([]) for key in measures}
        for _ in range(setup.rounds):
            for key, measure in measures.items():
                found[key].turns.append(measure())
        first = found["Demi", "OpenVINO"]
        for (server, runtime), turns in found.items():
            latencies = [f"{turns.percentile_ms(percent):.1f}" for percent in (50, 99)]
            cells = [f"{turns.rate:,.1f}", f"{turns.ratio(first):.2f}", *latencies, f"{turns.cpu_ms:.2f}", turns.errors]
            yield line([server, runtime, *cells])


def _road(bundle: Bundle, threads: int) -> Road:
    """Return the road that Demi itself would take here; FP32 on a CPU where none is right."""
    best = proof_of(bundle, threads, key_path()).best
    return best.road if best else Road(REFERENCE, "f32")


def _subjects(
    bundle: Bundle, setup: Setup, road: Road, folder: Path, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Subject]]:
    """Start Demi and, if its interpreter is given, Triton, each with OpenVINO and with ONNX Runtime."""
    threads = setup.threads
    copy, key = folder / "bundle", folder / "key"
    shutil.copytree(bundle.path, copy)
    _choose(open_bundle(copy), road, threads, key)
    in_openvino = ("--runtime", "openvino", "--engine-key", str(key))
    in_onnxruntime = ("--runtime", "onnxruntime", "--precision", "auto")
    yield "OpenVINO", Subject("Demi", stack.enter_context(serving(copy, threads, *in_openvino)))
    yield "ONNX Runtime FP32", Subject("Demi", stack.enter_context(serving(bundle.path, threads, *in_onnxruntime)))
    if python := setup.peers.get("triton"):
        options = json.dumps(cpu_options(OvSettings(road.hint, threads)))
        of_openvino = {"model": str(bundle.path / road.file), "options": options}
        of_onnxruntime = {"model": str(bundle.reference_path), "threads": str(threads)}
        for runtime, script, given in (
            ("OpenVINO", "triton_openvino.py", of_openvino),
            ("ONNX Runtime FP32", "triton_model.py", of_onnxruntime),
        ):
            place = folder / runtime.replace(" ", "-")
            yield runtime, stack.enter_context(triton("Triton", python, bundle, place, script, given))


def _choose(bundle: Bundle, road: Road, threads: int, key: Path) -> None:
    """Let a server take this road, whether or not it pays: servers are compared here, not precisions."""
    cpu = read_cpu()
    attempt = Attempt(road, "", {spec.name: 0.0 for spec in bundle.manifest.outputs}, (Timing(1, 1.0, 1.0),))
    place = place_of(bundle, cpu, openvino_version() or "", threads)
    write_proof(bundle, Proof(SCHEMA, place, str(cpu), bundle.manifest.precision, (attempt,)), make_key(key))


def resized(bundle: Bundle, size: int) -> Feeds:
    """Return a row with `size` elements along each padded axis: the golden one, cut or repeated."""
    return with_length(bundle, first_row(bundle), size)
