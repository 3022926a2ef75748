"""`demi rescale`: an FP32 model that fits half, with the same answers, for any pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console
from demi.cli.options import add_json, not_negative
from demi.errors import InputError

if TYPE_CHECKING:
    from demi.calibration.rescaling.certificate import Certificate
    from demi.exporter.rescaling.rescale import Rescaling

NAMED = 12
"""Most scaled constants that the console names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi rescale`."""
    parser.add_argument("model", type=Path, help="an .onnx file in FP32")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="ONNX", help="the file for the rescaled FP32 model"
    )
    parser.add_argument(
        "--sample",
        "--data",
        dest="sample",
        metavar="NPZ",
        help="real inputs by name: an .npz file, a folder of them, or package.module:function; ranges are measured on them",
    )
    parser.add_argument(
        "--certificate", type=Path, metavar="JSON", help="write what was multiplied by which power of two to this file"
    )
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed for drawn inputs (default: 0)")
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Rescale, and print what was changed; nothing is written where nothing is to be changed."""
    from demi.calibration.samples import load_arrays
    from demi.exporter.rescaling.api import rescale_file

    if args.output.resolve() == args.model.resolve():
        raise InputError("the output is the model itself", where=str(args.output), hint="give another file with -o")
    samples = load_arrays(args.sample) if args.sample is not None else []
    with console.quiet():
        result, used = rescale_file(
            args.model, args.output, samples, origin=str(args.sample or ""), seed=args.seed, step=console.step
        )
    if used.drawn:
        console.warn(f"ranges are guesses: they were measured on {used.origin}; give real inputs with --sample")
    if result.certificate is not None and args.certificate is not None:
        args.certificate.write_bytes(result.certificate.to_json())
    if args.json:
        console.json(_document(result, args.output))
    elif result.certificate is None:
        console.data(f"nothing was written: {result.why_not or 'nothing overflows or vanishes in FP16'}")
    else:
        _print(result.certificate, args.output, console)
    return 0


def _print(certificate: Certificate, output: Path, console: Console) -> None:
    rows = [
        ["leaves FP16", f"{certificate.before.nodes} -> {certificate.after.nodes}", "nodes, by their ranges"],
        ["constants", str(len(certificate.constants)), "multiplied by powers of two"],
        ["epsilons", str(len(certificate.numbers)), "in attributes, likewise"],
        [
            "FP32 answers",
            "same",
            f"to the last bit on {certificate.samples} sets of inputs, and by every operator's rule",
        ],
        ["model", "", str(output)],
    ]
    console.table("rescaled", ["", "value", "details "], rows)
    scaled = [
        [each.source or "a Mul", each.name if each.name != each.source else "", f"x 2^{each.exponent}"]
        for each in certificate.constants[:NAMED]
    ]
    console.table("what was multiplied", ["constant", "copy", "by "], scaled)
    if (more := len(certificate.constants) - NAMED) > 0:
        console.data(f"and {more} more")


def _document(result: Rescaling, output: Path) -> dict[str, object]:
    return {
        "model": str(output) if result else None,
        "why_not": result.why_not or None,
        "certificate": result.certificate,
        "fits": dict(result.fits),
    }
