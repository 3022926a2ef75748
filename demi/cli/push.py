"""`demi push`: copy bundles into a bucket or a registry."""

from __future__ import annotations

import argparse
from pathlib import Path

from demi.cli.console import Console
from demi.errors import InputError
from demi.remote.address import parse_address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi push`."""
    parser.add_argument("models", type=Path, metavar="MODELS", help="a folder of models, a model's folder or a bundle")
    parser.add_argument(
        "address", metavar="ADDRESS", help="where they go: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or oci://HOST/FOLDER"
    )
    parser.add_argument("--force", action="store_true", help="replace versions that are there already")


def run(args: argparse.Namespace, console: Console) -> int:
    """Copy every version; print the address of each, with the digest that pins it."""
    from demi.remote.push import push_models

    address = parse_address(args.address)
    if address is None or address.digest is not None or address.scheme.startswith("http"):
        raise InputError(
            f"`{args.address}` is not a place that bundles can be copied to",
            hint="give s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or oci://HOST/FOLDER, without a digest",
        )
    for pushed in push_models(args.models, address, force=args.force, say=console.note):
        console.data(pushed)
    return 0
