"""`demi serve MODELS`: bundles over HTTP and gRPC."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from demi.cli.console import Console
from demi.server.settings import add_flags, read_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder of bundles, and one flag for every row of the settings table."""
    parser.add_argument(
        "models", type=Path, metavar="MODELS", help="a folder of bundles (models/NAME/VERSION), or one bundle"
    )
    add_flags(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Serve until the process is told to stop."""
    settings = read_settings(args, os.environ)

    from demi.server.models.trial import Trials

    with Trials(settings) as trials:  # whose process starts while the server's own packages are read
        trials.begin(args.models)
        from demi.server.run import serve

        return serve(args.models, settings, trials)
