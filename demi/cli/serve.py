"""`demi serve MODELS`: serve bundles over HTTP and gRPC."""

from __future__ import annotations

import argparse
import os

from demi.cli.console import Console
from demi.remote.address import models_argument
from demi.server.settings import add_flags, read_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder of bundles, and a flag for every row of the settings table."""
    parser.add_argument(
        "models",
        type=models_argument,
        metavar="MODELS",
        help="a folder of bundles (models/NAME/VERSION), one bundle, or an address: s3://, gs://, oci:// or https://",
    )
    add_flags(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Serve until the process receives SIGINT or SIGTERM."""
    settings = read_settings(args, os.environ)

    from demi.api import serve_tried

    return serve_tried(args.models, settings)
