"""`demi rollback`: end a model's canary, or return to the stable version of before."""

from __future__ import annotations

import argparse

from demi.cli.console import Console
from demi.cli.version_commands import add_place, add_version, place_of, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi rollback`."""
    add_place(parser)
    add_version(
        parser,
        "the version to return to (default: end the canary; without one, the stable version of before, or the version "
        "below the newest)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Roll back, and show the versions."""
    return show(place_of(args).roll_back(args.version), args, console)
