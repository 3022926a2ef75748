"""`demi bench`: time FP32 and half side by side on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console, mebibytes, significant
from demi.cli.options import add_bundle, add_device, add_json, add_runtime, seconds
from demi.errors import DeviceError, InputError
from demi.files import check_writable, write_whole

if TYPE_CHECKING:
    from demi.bundles.bundle import Bundle
    from demi.calibration.benchmark.bench import Benchmark
    from demi.calibration.benchmark.timing import SideBySide
    from demi.proofs.record import Proof
    from demi.runtime.base import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi bench`."""
    add_bundle(parser)
    parser.add_argument(
        "--batch",
        default="1,8,32",
        metavar="N,N",
        help="batch sizes to time (default: 1,8,32; a bundle with a fixed batch is timed at that size)",
    )
    parser.add_argument(
        "--seconds", type=seconds, default=3.0, metavar="S", help="time for each batch size (default: 3)"
    )
    parser.add_argument(
        "--engine",
        action="store_true",
        help="time the bundle's TensorRT engine as the half model (needs --device cuda)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report with charts as one HTML file")
    add_device(parser)
    add_runtime(parser, "OpenVINO where it was proved right on this machine, else ONNX Runtime")
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Time the bundle's two models, print the results, and write the report if one was requested."""
    batches = _batches(args.batch)
    from demi.bundles.bundle import open_bundle
    from demi.calibration.benchmark.bench import bench_bundle
    from demi.calibration.report.bench import bench_report
    from demi.calibration.report.page import require_report_packages

    if args.html:
        require_report_packages()
        check_writable(args.html)
    bundle = open_bundle(args.bundle)
    engine = _open_engine(bundle, args) if args.engine else None
    proof = _prove(bundle, args, console) if engine is None else None
    road = proof.best.road if proof and proof.best else None
    result = bench_bundle(bundle, args.device, batches, args.seconds, console.step, engine, road)
    if args.html:
        write_whole(args.html, bench_report(result))
    if args.json:
        console.json(_document(result))
    else:
        _print(result, console)
    if note := _note_on_cpu(proof, result) if proof else _note(args, result.precision, result.batches):
        console.note(f"note: {note}")
    return 0


def _prove(bundle: Bundle, args: argparse.Namespace, console: Console) -> Proof | None:
    """The proof that OpenVINO computes a bundle right here; None where ONNX Runtime runs it anyway.

    Raises InputError for OpenVINO on a GPU, and DeviceError where it is asked for and not right.
    """
    if args.device.kind != "cpu":
        if args.runtime == "openvino":
            raise InputError("OpenVINO runs on a CPU here", hint="leave --device or --runtime out")
        return None
    if args.runtime == "onnxruntime":
        return None
    from demi.engines.key import key_path
    from demi.proofs.prove import proof_of
    from demi.runtime.cores import usable_cores

    with console.step("proving half on this CPU"):
        proof = proof_of(bundle, usable_cores(), key_path())
    if proof.best is None and args.runtime == "openvino":
        raise DeviceError(proof.verdict(), where=str(bundle.path), hint="use --runtime onnxruntime")
    return proof


def _note_on_cpu(proof: Proof, result: Benchmark) -> str | None:
    """Return why half is not faster on this CPU; None if it is."""
    from demi.runtime.openvino.capability import lacking_units, read_cpu

    if proof.best is None:
        return f"{proof.verdict()}; ONNX Runtime has few half kernels on a CPU and computes in FP32 between casts"
    if all(timed.speedup >= 1 for timed in result.batches):
        return None
    why = lacking_units(read_cpu(), result.precision) or "the model may be too small"
    return f"half is not faster here: {why}"


def _note(args: argparse.Namespace, precision: str, results: tuple[SideBySide, ...]) -> str | None:
    """Return why half is not faster here; None if it is."""
    if args.device.kind == "cpu":
        return (
            "on a CPU, ONNX Runtime has few half kernels and computes in FP32 between casts; "
            "half precision is faster on a GPU (--device cuda)"
        )
    from demi.runtime.cuda.bindings import find_gpu
    from demi.runtime.cuda.capability import why_not_faster

    gpu = find_gpu(args.device)
    if gpu is not None and (why := why_not_faster(gpu, precision)):
        return why
    if all(result.speedup < 1 for result in results):
        return "half is not faster here: the model may be too small for this GPU, so that kernel launches dominate; try larger batches"
    return None


def _open_engine(bundle: Bundle, args: argparse.Namespace) -> Session:
    from demi.engines.open import require_built_engine

    if args.device.kind != "cuda":
        raise InputError("engines run on a GPU", hint="add --device cuda")
    return require_built_engine(bundle, args.device).session


def _print(result: Benchmark, console: Console) -> None:
    title = f"{result.name} v{result.version} on {result.device}"
    _print_times(result, title, console)
    _print_sizes(result, console)
    columns = ["output", "relative L2", "max abs", "cosine", "top-1", "budget ", "verdict "]
    rows = [
        [
            diff.output,
            significant(diff.relative_l2),
            significant(diff.max_abs),
            f"{diff.cosine:.6f}",
            "-" if diff.top1 is None else f"{diff.top1:.4f}",
            str(diff.limits),
            "within" if diff else "OVER",
        ]
        for diff in result.comparison.outputs
    ]
    console.table(f"outputs against FP32, {result.measured_by}", columns, rows)
    for diff in result.emulated.outputs if result.emulated else ():
        console.data(f"the emulator predicts for `{diff.output}`: {significant(diff.relative_l2)} relative L2")
    for line in result.varying:
        console.data(f"random: {line}")
    for line in result.comparison.boxes():
        console.data(line)


def _print_times(result: Benchmark, title: str, console: Console) -> None:
    rows = []
    for timed in result.batches:
        for name, latency in (("fp32", timed.fp32), (result.precision, timed.half)):
            ratio = f"{timed.speedup:.2f}x" if latency is timed.half else ""
            rows.append(
                [
                    str(latency.batch),
                    name,
                    *(f"{ms:.2f}" for ms in (latency.p50_ms, latency.p95_ms, latency.p99_ms)),
                    f"{latency.rows_per_s:,.0f}",
                    ratio,
                ]
            )
    columns = ["batch", "precision ", "p50 ms", "p95 ms", "p99 ms", "rows/s", "fp32 / half"]
    console.table(f"{title}, alternating", columns, rows)


def _print_sizes(result: Benchmark, console: Console) -> None:
    def row(name: str, fp32: int | None, half: int | None) -> list[str]:
        return [name, *("-" if count is None else mebibytes(count) for count in (fp32, half))]

    fp32, half = result.fp32, result.half
    rows = [
        row("model file", fp32.file_bytes, half.file_bytes),
        row("memory after loading", fp32.memory.loaded_bytes, half.memory.loaded_bytes),
        row("peak memory", fp32.memory.peak_bytes, half.memory.peak_bytes),
        row("without mapped files", fp32.memory.own_bytes, half.memory.own_bytes),
    ]
    if result.device != "cpu":
        rows.append(row("device memory", fp32.memory.device_bytes, half.memory.device_bytes))
    console.table("size and memory, each in its own process", ["", "fp32", result.precision], rows)


def _document(result: Benchmark) -> dict[str, object]:
    return {
        "bundle": result.bundle,
        "name": result.name,
        "version": result.version,
        "precision": result.precision,
        "device": result.device,
        "machine": result.machine,
        "batches": [{"fp32": timed.fp32, "half": timed.half, "speedup": timed.speedup} for timed in result.batches],
        "file_bytes": {"fp32": result.fp32.file_bytes, "half": result.half.file_bytes},
        "memory": {"fp32": result.fp32.memory, "half": result.half.memory},
        "outputs": result.comparison.outputs,
        "outputs_measured": result.measured_by,
        "outputs_emulated": result.emulated.outputs if result.emulated else None,
        "within_budget": bool(result.comparison),
        "varying": result.varying,
        "samples": result.comparison.samples,
    }


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"`{text}` is not a list of batch sizes", hint="write them as in --batch 1,8,32")
    return [int(part) for part in parts]
