"""`demi pull`: copy bundles from a bucket, a registry or a web server to this machine."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from demi.cli.console import Console
from demi.errors import InputError
from demi.remote.address import parse_address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi pull`."""
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        help="s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, oci://HOST/NAME[:VERSION] or https://HOST/FOLDER; @sha256:DIGEST pins "
        "one bundle",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("models"), metavar="MODELS", help="folder of models (default: models)"
    )
    parser.add_argument("--force", action="store_true", help="replace versions that are here already")


def run(args: argparse.Namespace, console: Console) -> int:
    """Download what the machine's cache lacks, and write NAME/VERSION below the output."""
    from demi.bundles.bundle import writing
    from demi.bundles.find import bundles_at
    from demi.bundles.stamps import cache_folder
    from demi.remote.cache import Cache
    from demi.remote.fetch import fetch_models

    address = parse_address(args.address)
    if address is None:
        raise InputError(f"`{args.address}` is not an address", hint="give s3://, gs://, oci:// or https://")
    fetched = fetch_models(address, Cache(cache_folder()), console.note)
    for bundle in bundles_at(fetched, every_version=True):
        place = args.output / bundle.parent.name / bundle.name
        with writing(place, force=args.force) as draft:
            shutil.copytree(bundle, draft, dirs_exist_ok=True, copy_function=shutil.copyfile)
        console.data(str(place))
    return 0
