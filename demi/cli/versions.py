"""`demi versions`: a model's versions and the share of the requests that each answers."""

from __future__ import annotations

import argparse

from demi.cli.console import Console
from demi.cli.version_commands import add_place, place_of, show
from demi.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi versions`."""
    add_place(parser)
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=VERSION",
        help="give a version another name, usable wherever a version is; `NAME=` removes the name; repeatable",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Set the aliases, if any are given, and show the versions."""
    place = place_of(args)
    aliases = dict(map(_alias, args.alias))
    return show(place.alias(aliases) if aliases else place.show(), args, console)


def _alias(text: str) -> tuple[str, str | None]:
    name, equals, version = text.partition("=")
    if not equals:
        raise InputError(f"--alias: `{text}` has no `=`", hint="write --alias blue=2, or --alias blue= to remove it")
    return name, version or None
