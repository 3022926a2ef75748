"""Options and output that `demi versions`, `demi canary`, `demi promote` and `demi rollback` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demi.cli.console import Console, significant
from demi.cli.options import add_json

if TYPE_CHECKING:
    from demi.cli.version_places import Document, Place


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the model, and the server to ask instead of its folder."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="the model's folder, e.g. models/minilm; with --server its name, or a folder of that name",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="ask a running server, e.g. http://localhost:8000 (it needs --allow-model-control to change anything); "
        "without it, the folder is changed, and servers of that folder follow within a second",
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file whose first line is the key that the server requires"
    )
    add_json(parser)


def add_version(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the version, which may be left out."""
    parser.add_argument("version", nargs="?", metavar="VERSION", help=text)


def place_of(args: argparse.Namespace) -> Place:
    """Return where the command shows or changes versions: the server if one is given, else the folder."""
    from demi.cli.version_places import Folder, Server

    if args.server:
        return Server(args.server, args.model, args.api_key_file)
    return Folder(Path(args.model))


def show(document: Document, args: argparse.Namespace, console: Console) -> int:
    """Print the versions and the rules among them; return the exit code."""
    if args.json:
        console.json(document)
        return 0
    live = any("state" in each for each in document["versions"])
    columns = ["version", "aliases ", "requests without a version"]
    columns += ["state ", "requests", "failed", "p50 ms", "p99 ms", "accuracy "] if live else []
    rows = [_row(each, live) for each in document["versions"]]
    console.data(f"{document['name']}: {_rules(document)}")
    console.table("", columns, rows)
    if document.get("saved") is False:
        console.warn("the server could not save this in the model's folder: it ends with the server (see its log)")
    return 0


def _rules(document: Document) -> str:
    """Return the rules in one sentence."""
    canary, answering = document["canary"], document["answering"]
    if document["stable"] is None:
        return f"the newest version answers ({answering})"
    if canary is None:
        return f"version {document['stable']} answers"
    header = f", and those with the header {canary['header']}" if canary["header"] else ""
    share = f"{canary['percent']:g}% of the requests{header}"
    return f"version {document['stable']} answers; version {canary['version']} gets {share}"


def _row(each: dict[str, Any], live: bool) -> list[str]:
    row = [each["version"], ", ".join(each["aliases"]) or "-", f"{each['percent']:g}%"]
    if not live:
        return row
    accuracy = each["accuracy"]
    return [
        *row,
        each["state"] + (f": {each['reason']}" if each["reason"] else ""),
        str(each["requests"]),
        str(each["failed"]),
        _number(each["p50_ms"]),
        _number(each["p99_ms"]),
        _accuracy(accuracy) if accuracy else "-",
    ]


def _accuracy(accuracy: dict[str, Any]) -> str:
    """Return the state and the largest relative L2 of an output."""
    errors = [each["relative_l2"]["value"] for each in accuracy["outputs"]]
    if not errors:
        return str(accuracy["state"])
    worst = "infinite" if None in errors else significant(max(errors))
    return f"{accuracy['state']}, relative L2 {worst}"


def _number(value: float | None) -> str:
    return "-" if value is None else significant(value)
