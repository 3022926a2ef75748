"""`demi run`: a bundle's answers to inputs from a file, or to its golden inputs, compared with FP32."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console, significant
from demi.cli.generate import run_generator
from demi.cli.options import add_bundle, add_device, add_json, add_runtime, positive
from demi.errors import InputError
from demi.files import check_writable, write_bytes_whole
from demi.tensors import Array, Feeds

if TYPE_CHECKING:
    from demi.accuracy.compare import Comparison
    from demi.bundles.bundle import Golden
    from demi.model import Model

RAW = {"text": "a text for a bundle that takes texts", "image": "an image file", "audio": "a WAV or FLAC file"}
"""Options for raw inputs, which are also the names of these inputs."""

FIRST = 6
"""Number of values that are shown of each output."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi run`."""
    add_bundle(parser)
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--input",
        metavar="NPZ",
        help="inputs by name: an .npz file, a folder of them, or package.module:function that yields them",
    )
    inputs.add_argument(
        "--golden",
        action="store_true",
        help="run the bundle's golden inputs and compare the outputs with FP32's; exit code 1 if they exceed the budget",
    )
    for kind, what in RAW.items():
        inputs.add_argument(f"--{kind}", action="append", metavar=kind.upper(), help=f"{what}; repeatable")
    parser.add_argument(
        "--text-pair",
        action="append",
        metavar="TEXT",
        help="the second text for each --text, if the model compares two",
    )
    parser.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="most new tokens of a generated text (default: 64 for a continued one)",
    )
    parser.add_argument(
        "--language",
        metavar="CODE",
        help="the language that speech is written in, such as en (default: the model's, or the most probable one)",
    )
    parser.add_argument("--truncate", action="store_true", help="cut texts and sounds that are too long for the model")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="NPZ",
        help="write the outputs by name to this .npz file; those of several sets of inputs become 000/NAME, 001/NAME, ...",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "half", "fp32"),
        default="auto",
        help="auto (default): what `demi serve` would compute in on this device; half: always half; fp32: the bundle's reference",
    )
    add_runtime(parser, "what `demi serve` would choose")
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run every set of inputs; print the shape and the first values of each output."""
    from demi.model import load

    if args.output:
        check_writable(args.output)
    raw = _raw_inputs(args)
    sets = None if args.golden or raw else _read_inputs(args.input)
    with console.quiet(), console.step("loading the model"):
        model = load(args.bundle, device=str(args.device), runtime=args.runtime, precision=args.precision)
    with model:
        if raw and model.generator is not None:
            return run_generator(model, raw, args, console)
        if args.max_tokens:
            raise InputError("--max-tokens is for models that generate", hint="leave it out")
        if args.language:
            raise InputError("--language is for models that write speech", hint="leave it out")
        golden = _golden(model) if sets is None and not raw else None
        if raw:
            outputs = [model.run(raw, truncate=args.truncate)]
        else:
            outputs = [model.run(feeds) for feeds in (golden.inputs if golden else sets or [])]
        found = _compare(model, golden, outputs) if golden else None
        if args.output:
            _write(args.output, outputs)
        if args.json:
            console.json(_document(model, outputs, found))
        else:
            _print(model, outputs, found, console)
    return 0 if found is None or found else 1


def _raw_inputs(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return texts, or the paths of images or sounds, by the name of their input; empty if there are none."""
    found = {kind: getattr(args, kind) for kind in RAW if getattr(args, kind)}
    if args.text_pair and "text" not in found:
        raise InputError("--text-pair needs --text", hint="give one for each")
    if args.truncate and not found:
        raise InputError("--truncate is for raw inputs", hint="give --text or --audio")
    return found | ({"text_pair": args.text_pair} if args.text_pair else {})


def _read_inputs(source: str) -> list[Feeds]:
    from demi.calibration.samples import load_arrays

    return load_arrays(source)


def _golden(model: Model) -> Golden:
    from demi.bundles.bundle import open_bundle

    golden = open_bundle(model.path, verify=False).golden_or_none()
    if golden is None:
        raise InputError("the bundle has no golden inputs", where=str(model.path), hint="give inputs with --input")
    return golden


def _compare(model: Model, golden: Golden, outputs: Sequence[Feeds]) -> Comparison:
    """Compare outputs with FP32's as the bundle's budget demands; outputs that vary in FP32 itself are left out."""
    from demi.accuracy.compare import compare
    from demi.bundles.bundle import open_bundle

    manifest = open_bundle(model.path, verify=False).manifest
    wanted, got = (
        [manifest.varying.comparable(each, live=True) for each in sets] for sets in (golden.outputs, outputs)
    )
    return compare(wanted, got, manifest.budget)


def _write(path: Path, outputs: Sequence[Feeds]) -> None:
    import io

    import numpy as np

    several = len(outputs) > 1
    arrays = {
        f"{index:03d}/{name}" if several else name: array.astype(np.str_) if array.dtype.kind == "O" else array
        for index, feeds in enumerate(outputs)
        for name, array in feeds.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes_whole(path, buffer.getvalue())


def _print(model: Model, outputs: Sequence[Feeds], found: Comparison | None, console: Console) -> None:
    title = f"{model.name} v{model.version} in {model.precision} on {model.device}"
    for index, feeds in enumerate(outputs):
        rows = [[name, str(array.dtype), str(list(array.shape)), _first(array)] for name, array in feeds.items()]
        name = title if len(outputs) == 1 else f"{title}, inputs {index + 1} of {len(outputs)}"
        console.table(name, ["output", "type ", "shape ", "first values "], rows)
    if found is None:
        return
    rows = [
        [diff.output, significant(diff.relative_l2), significant(diff.max_abs), str(diff.limits), _verdict(diff)]
        for diff in found.outputs
    ]
    console.table(
        f"against FP32, golden sets: {found.samples}",
        ["output", "relative L2", "max abs", "budget ", "verdict "],
        rows,
    )
    for line in found.failures():
        console.note(f"over budget: {line}")


def _verdict(within: object) -> str:
    return "within" if within else "OVER"


def _first(array: Array) -> str:
    """Return the first values of an array in a few words."""
    values = [f"{value:.6g}" if array.dtype.kind == "f" else str(value) for value in array.reshape(-1)[:FIRST]]
    return ", ".join(values) + (", ..." if array.size > FIRST else "")


def _document(model: Model, outputs: Sequence[Feeds], found: Comparison | None) -> dict[str, object]:
    return {
        "bundle": str(model.path),
        "name": model.name,
        "version": model.version,
        "precision": model.precision,
        "device": model.device,
        "outputs": [
            [
                {
                    "name": name,
                    "dtype": str(array.dtype),
                    "shape": list(array.shape),
                    "first": array.reshape(-1)[:FIRST].tolist(),
                }
                for name, array in feeds.items()
            ]
            for feeds in outputs
        ],
        "within_budget": None if found is None else bool(found),
        "against_fp32": None if found is None else found.outputs,
    }
