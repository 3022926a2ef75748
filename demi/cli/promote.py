"""`demi promote`: make a version of a model the stable one, which answers every request without a version."""

from __future__ import annotations

import argparse

from demi.cli.console import Console
from demi.cli.version_commands import add_place, add_version, place_of, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi promote`."""
    add_place(parser)
    add_version(
        parser,
        "the version to make stable, whatever comes after it (default: the canary); `newest` lets the newest version "
        "answer again",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Promote a version, and show the versions."""
    return show(place_of(args).promote(args.version), args, console)
