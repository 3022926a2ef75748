"""Options of `demi export --tensorrt`: how an engine is built and for which shapes. trtexec's spellings work, too."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.byte_sizes import parse_bytes
from demi.cli.console import Console, significant
from demi.errors import InputError
from demi.runtime.base import Device

if TYPE_CHECKING:
    from demi.exporter.tensorrt.build import BuiltEngine
    from demi.exporter.tensorrt.builder import EngineOptions

LEVELS = range(6)
SLOWEST = 5
"""Number of layers that the console shows; layers.json has all."""


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add `--tensorrt` and its options."""
    group = parser.add_argument_group("the TensorRT engine")
    group.add_argument(
        "--tensorrt",
        action="store_true",
        help="also build a strongly typed engine for this GPU; if MODEL is a bundle, only build the engine",
    )
    group.add_argument(
        "--device",
        type=Device.parse,
        default=Device("cuda"),
        metavar="DEVICE",
        help="the GPU to build for: cuda or cuda:N (default: cuda)",
    )
    for kind, what in (("min", "smallest"), ("opt", "fastest"), ("max", "largest")):
        group.add_argument(
            f"--{kind}-shapes",
            f"--{kind}Shapes",
            default="",
            metavar="NAME:1x3x224,...",
            help=f"the {what} shape of inputs with axes of any size; the number of rows follows from --max-batch",
        )
    group.add_argument(
        "--workspace", default="", metavar="SIZE", help="memory limit for the kernel of one layer, e.g. 2G"
    )
    group.add_argument(
        "--builder-optimization-level",
        "--builderOptimizationLevel",
        type=int,
        choices=LEVELS,
        help="0 builds fastest, 5 runs fastest (TensorRT's default: 3)",
    )
    group.add_argument(
        "--timing-cache",
        "--timingCacheFile",
        type=Path,
        metavar="FILE",
        help="file that keeps kernel timings between builds",
    )
    group.add_argument(
        "--hardware-compatibility",
        "--hardwareCompatibilityLevel",
        default="none",
        metavar="LEVEL",
        help="other GPUs that may run the engine: none (default), same-compute-capability or ampere+",
    )
    group.add_argument(
        "--version-compatible",
        "--versionCompatible",
        action="store_true",
        help="let newer TensorRT versions run the engine (needs tensorrt-lean of this version beside them)",
    )
    group.add_argument(
        "--fp32-accumulate",
        action="store_true",
        help="sum matrix products of half inputs in FP32: slower, but sums cannot overflow",
    )
    group.add_argument(
        "--engine-key", type=Path, metavar="FILE", help="key that signs engines (default: ~/.config/demi/engine.key)"
    )


def engine_options(args: argparse.Namespace) -> EngineOptions | None:
    """Return those options, None without `--tensorrt`; raise InputError for options that need it."""
    if not args.tensorrt:
        _refuse_without_tensorrt(args)
        return None
    if args.device.kind != "cuda":
        raise InputError("engines are built on a GPU", hint="use --device cuda or cuda:N")
    from demi.engines.key import key_path
    from demi.exporter.tensorrt.builder import EngineOptions
    from demi.exporter.tensorrt.shapes import ShapeOptions, parse_shapes

    shapes = (parse_shapes(text) if text else {} for text in (args.min_shapes, args.opt_shapes, args.max_shapes))
    return EngineOptions(
        device=args.device,
        shapes=ShapeOptions(*shapes),
        workspace_bytes=_bytes(args.workspace),
        level=args.builder_optimization_level,
        timing_cache=args.timing_cache,
        hardware=_hardware(args.hardware_compatibility),
        version_compatible=args.version_compatible,
        fp32_accumulate=args.fp32_accumulate,
        key=args.engine_key or key_path(),
    )


def print_engine(built: BuiltEngine, console: Console) -> None:
    """Print an engine's path, its shapes and its slowest layers."""
    record = built.record
    rows = [["engine", f"TensorRT {record.tensorrt}", str(built.path)], ["built for", record.gpu, record.hardware]]
    for name, each in record.shapes.items():
        low, best, high = ("x".join(map(str, shape)) for shape in (each.min, each.opt, each.max))
        rows.append([f"shape of {name}", best, low if low == high else f"from {low} to {high}"])
    for diff in built.comparison.outputs if built.comparison else ():
        details = f"relative L2 from FP32; budget: {diff.limits}; max abs {significant(diff.max_abs)}"
        rows.append([f"error of {diff.output}", significant(diff.relative_l2), details])
    console.table("TensorRT engine", ["", "value ", "details "], rows)
    slowest = sorted((layer for layer in built.layers if layer.mean_ms), key=lambda layer: -(layer.mean_ms or 0))
    if slowest:
        console.table(
            "the slowest layers (engine/layers.json has all)",
            ["layer", "ms", "writes ", "planned "],
            [
                [layer.name[:80], f"{layer.mean_ms:.3f}", ", ".join(layer.writes), layer.planned]
                for layer in slowest[:SLOWEST]
            ],
        )


def engine_document(built: BuiltEngine) -> dict[str, object]:
    """Return the engine for `--json`."""
    record = built.record
    return {
        "engine": str(built.path),
        "tensorrt": record.tensorrt,
        "gpu": record.gpu,
        "shapes": record.shapes,
        "options": record.options,
        "layers": len(built.layers),
        "outputs": built.comparison.outputs if built.comparison else None,
    }


def _refuse_without_tensorrt(args: argparse.Namespace) -> None:
    given = [
        name
        for name in (
            "min_shapes",
            "opt_shapes",
            "max_shapes",
            "workspace",
            "builder_optimization_level",
            "timing_cache",
        )
        if getattr(args, name) not in ("", None)
    ]
    given += [name for name in ("version_compatible", "fp32_accumulate", "engine_key") if getattr(args, name)]
    given += ["hardware_compatibility"] if args.hardware_compatibility != "none" else []
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} needs --tensorrt", hint="add --tensorrt to build an engine")


def _hardware(text: str) -> str:
    """Return the level that is written here, with or without its hyphens."""
    from demi.engines.record import HARDWARE

    for level in HARDWARE:
        if level.replace("-", "") == text.lower().replace("-", ""):
            return level
    raise InputError(f"unknown hardware compatibility `{text}`", hint=f"use one of {', '.join(HARDWARE)}")


def _bytes(text: str) -> int:
    """Parse a size such as 2G, 512M, or trtexec's number of MiB; return 0 for none."""
    if not text:
        return 0
    return parse_bytes(f"{text}M" if text.isdecimal() else text)
