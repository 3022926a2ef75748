"""`demi bench`: FP32 and half side by side on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console
from demi.cli.options import add_device, add_json, seconds
from demi.errors import BundleError, DeviceError, InputError

if TYPE_CHECKING:
    from calibration.timing import SideBySide
    from demi.bundle import Bundle
    from demi.runtime.base import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demi bench`."""
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="a model's folder (its newest version) or a version's folder"
    )
    parser.add_argument(
        "--batch",
        default="1,8,32",
        metavar="N,N",
        help="batch sizes to time (default: 1,8,32; only as the bundle is, when its batch is fixed)",
    )
    parser.add_argument(
        "--seconds", type=seconds, default=3.0, metavar="S", help="time for each batch size (default: 3)"
    )
    parser.add_argument(
        "--engine",
        action="store_true",
        help="time the bundle's TensorRT engine as the half model (needs --device cuda)",
    )
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Time the bundle's two models turn by turn and print latency and throughput."""
    batches = _batches(args.batch)
    from demi.bundle import open_bundle

    bundle = open_bundle(args.bundle)
    results = _measure(bundle, batches, args, console)
    if args.json:
        console.json(_document(bundle, results, str(args.device)) | {"engine": args.engine})
    else:
        _print(bundle, results, console, str(args.device), engine=args.engine)
    if note := _note(args, bundle.manifest.precision, results):
        console.note(f"note: {note}")
    return 0


def _note(args: argparse.Namespace, precision: str, results: list[SideBySide]) -> str | None:
    """Where half is not faster, why."""
    if args.device.kind == "cpu":
        return (
            "ONNX Runtime has hardly any half kernels on the CPU and computes in FP32 between casts; "
            "half precision pays on a GPU (--device cuda)"
        )
    from demi.runtime.capability import why_not_faster
    from demi.runtime.cuda import find_gpu

    gpu = find_gpu(args.device)
    if gpu is not None and (why := why_not_faster(gpu, precision)):
        return why
    if all(result.speedup < 1 for result in results):
        return "half is not faster here: the model may be too small to fill this GPU, so that launches take the time; try larger batches"
    return None


def _measure(bundle: Bundle, batches: list[int], args: argparse.Namespace, console: Console) -> list[SideBySide]:
    from calibration.timing import time_side_by_side, with_batch
    from demi.runtime.ort import open_session

    if bundle.reference_path is None:
        raise BundleError(
            "the bundle holds no FP32 reference to compare with",
            where=str(bundle.path),
            hint="export it without --no-reference",
        )
    if bundle.manifest.precision == "bf16" and args.device.kind == "cpu":
        raise DeviceError(
            "ONNX Runtime has no bfloat16 kernels on the CPU",
            hint="time this bundle on a GPU with --device cuda, or export with --fp16",
        )
    half = _open_engine(bundle, args) if args.engine else open_session(bundle.model_path, args.device)
    fp32 = open_session(bundle.reference_path, args.device)
    feeds = bundle.golden().inputs[0]
    if not bundle.manifest.batch.free:
        batches = [next(iter(feeds.values())).shape[0] if feeds and next(iter(feeds.values())).ndim else 1]
    results = []
    for batch in batches:
        with console.step(f"timing batches of {batch}"):
            sized = with_batch(feeds, bundle.manifest.inputs, batch) if bundle.manifest.batch.free else feeds
            results.append(time_side_by_side(fp32, half, sized, batch, args.seconds))
    return results


def _open_engine(bundle: Bundle, args: argparse.Namespace) -> Session:
    from demi.runtime.opening import open_built_engine
    from demi.seal import key_path

    if args.device.kind != "cuda":
        raise InputError("engines run on a GPU", hint="add --device cuda")
    found = open_built_engine(bundle, args.device, key_path())
    if found is None:
        raise BundleError(
            "the bundle has no engine",
            where=str(bundle.path),
            hint=f"build one on this machine: demi export --tensorrt {bundle.path}",
        )
    return found.session


def _print(bundle: Bundle, results: list[SideBySide], console: Console, device: str, *, engine: bool) -> None:
    rows = []
    half = bundle.manifest.precision + (" (TensorRT)" if engine else "")
    for result in results:
        for name, latency in (("fp32", result.fp32), (half, result.half)):
            ratio = f"{result.speedup:.2f}x" if latency is result.half else ""
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
    console.table(f"{bundle.manifest.name} v{bundle.manifest.version} on {device}, turn by turn", columns, rows)


def _document(bundle: Bundle, results: list[SideBySide], device: str) -> dict[str, object]:
    return {
        "bundle": str(bundle.path),
        "device": device,
        "precision": bundle.manifest.precision,
        "batches": [{"fp32": result.fp32, "half": result.half, "speedup": result.speedup} for result in results],
    }


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"`{text}` is no list of batch sizes", hint="write --batch 1,8,32")
    return [int(part) for part in parts]
