"""`demi report`: one HTML page about all versions of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from demi.cli.console import Console
from demi.errors import BundleError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi report`."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a model's folder, or a version's; of a folder of models, choose one"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("versions.html"), metavar="FILE", help="default: versions.html"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the page. Nothing is measured: it shows what the exports recorded."""
    from demi.bundles.find import bundle_at, bundles_at
    from demi.calibration.report.page import require_report_packages
    from demi.calibration.report.versions import VersionFacts, versions_report
    from demi.cli.bundle_facts import read_facts
    from demi.files import check_writable, write_whole

    require_report_packages()
    check_writable(args.output)
    newest = bundle_at(args.model)  # raises for several models
    folder = newest.parent if newest != args.model else newest
    found = []
    for facts in map(read_facts, bundles_at(folder, every_version=True)):
        if facts.bundle is None:
            console.warn(f"version {facts.version} is left out: {facts.problem}")
            continue
        errors = {each.output: each.relative_l2 for each in facts.errors}
        found.append(VersionFacts(facts.bundle.manifest, errors, facts.bundle.plan(), facts.bytes))
    if not found:
        raise BundleError("none of its versions can be opened", where=str(args.model))
    write_whole(args.output, versions_report(found))
    console.data(f"{args.output}: {len(found)} versions of {found[-1].manifest.name}")
    return 0
