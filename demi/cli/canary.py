"""`demi canary`: send a share of a model's requests to one version, to compare it with the stable one."""

from __future__ import annotations

import argparse

from demi.cli.console import Console
from demi.cli.version_commands import add_place, add_version, place_of, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi canary`."""
    add_place(parser)
    add_version(parser, "the version that gets the share: a number or an alias (default: the newest)")
    parser.add_argument(
        "--percent",
        type=_percent,
        default=10.0,
        metavar="SHARE",
        help="share of the requests without a version that it answers, from 0 to 100 (default: 10)",
    )
    parser.add_argument(
        "--header",
        default="",
        metavar="NAME[=VALUE]",
        help="send requests with this header (gRPC: metadata) to it as well, whatever the share",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Start or change the canary, and show the versions."""
    return show(place_of(args).canary(args.version, args.percent, args.header), args, console)


def _percent(text: str) -> float:
    """Parse a share from 0 to 100, with or without a percent sign."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"`{text}` is not a share from 0 to 100")
    return value
