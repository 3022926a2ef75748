"""`demi completion`: a script that completes commands, options and paths in bash, zsh or tcsh."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demi.cli.console import Console
from demi.errors import missing_package

SHELLS = ("bash", "zsh", "tcsh")
PATHS = frozenset({"NPZ", "FILE", "JSON", "XML", "MD", "DIR", "BUNDLE", "MODEL", "MODELS", "PATH", "A", "B"})
"""Names of values that are paths."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi completion`."""
    parser.add_argument(
        "shell", choices=SHELLS, help='to use it at once: eval "$(demi completion bash)", or the same line in ~/.bashrc'
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Print the script. Raise PackageError without shtab, which writes it."""
    try:
        import shtab
    except ImportError as error:
        raise missing_package("shtab", "completion") from error
    from demi.cli.commands import build_parser

    parser = build_parser()
    for action in actions(parser):
        if action.type is Path or action.metavar in PATHS:
            action.complete = shtab.FILE
    console.script(shtab.complete(parser, shell=args.shell))
    return 0


def actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yield the options and arguments of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
        else:
            yield action
