"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from demi.runtime.base import Device
from demi.runtime.options import RUNTIMES


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`: print the result for machines instead of a table."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add the bundle, a positional argument."""
    parser.add_argument(
        "bundle",
        type=Path,
        metavar="BUNDLE",
        help="a version's folder, a model's folder (its newest version), or a folder with a single model",
    )


def seconds(text: str) -> float:
    """Parse a time of zero or more seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of seconds")
    return value


def not_negative(text: str) -> int:
    """Parse a whole number of zero or more, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of zero or more")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number above zero, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a positive number")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`: where the model runs."""
    parser.add_argument(
        "--device",
        type=Device.parse,
        default=Device(),
        metavar="DEVICE",
        help="cpu (default), cuda or cuda:N; a missing device is an error, never a silent fallback",
    )


def add_runtime(parser: argparse.ArgumentParser, auto: str) -> None:
    """Add `--runtime`: what runs half on a CPU."""
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help=f"what computes half on a CPU: auto ({auto}), onnxruntime or openvino",
    )


def add_budget(parser: argparse._ActionsContainer, default: str) -> None:
    """Add `--budget`: the accuracy budget, repeatable."""
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="METRIC=LIMIT",
        help="accuracy budget: a limit for relative_l2, max_abs, cosine, top1, agree, steps or boxes; separate several with commas, prefix OUTPUT: to limit one output; repeatable "
        f"(default: {default})",
    )
