"""Options that several commands share."""

from __future__ import annotations

import argparse
import math

from demi.runtime.base import Device


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`: the result for machines instead of a table."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def seconds(text: str) -> float:
    """A time from zero on, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"`{text}` is no number of seconds")
    return value


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`: where the model runs."""
    parser.add_argument(
        "--device",
        type=Device.parse,
        default=Device(),
        metavar="DEVICE",
        help="cpu (default), cuda or cuda:N; never falls back in silence",
    )


def add_budget(parser: argparse._ActionsContainer, default: str) -> None:
    """`--budget`: the accuracy budget, repeatable."""
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="METRIC=LIMIT",
        help="accuracy budget: relative_l2, max_abs, cosine, top1, agree, steps or boxes, several with commas, one output with OUTPUT: before it; repeatable "
        f"(default: {default})",
    )
