"""`demi list`: the bundles in a folder, one line for each version."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console, mebibytes, significant
from demi.cli.options import add_json
from demi.errors import BundleError

if TYPE_CHECKING:
    from demi.cli.bundle_facts import BundleFacts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi list`."""
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("models"),
        metavar="MODELS",
        help="a folder of models, a model's folder or a bundle (default: models)",
    )
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """List every version of every model; bundles that cannot be opened are listed with the reason."""
    from demi.bundles.find import bundles_at
    from demi.cli.bundle_facts import read_facts
    from demi.cli.version_shares import share_of

    with console.quiet():
        found = [read_facts(path) for path in bundles_at(args.folder, every_version=True)]
    leftovers = _leftovers(args.folder)
    if not found and not leftovers:
        raise BundleError(
            "no such folder" if not args.folder.exists() else "the folder holds no bundle",
            where=str(args.folder),
            hint="create a bundle with: demi export --fp16 model.pt",
        )
    shares = [share_of(facts.path) for facts in found]
    if args.json:
        console.json(
            [facts_to_json(facts) | {"requests": share} for facts, share in zip(found, shares, strict=True)],
        )
    elif found:
        columns = ["model", "version", "precision ", "size", "batch ", "error", "budget ", "on this machine "]
        rows = [_row(facts) for facts in found]
        if any(shares):
            columns.insert(2, "requests ")
            for row, share in zip(rows, shares, strict=True):
                row.insert(2, share.words if share else "-")
        console.table(str(args.folder), columns, rows)
    for left in leftovers:
        console.note(f"note: {left} was left by an export that crashed; the next export there removes it")
    return 0


def _row(facts: BundleFacts) -> list[str]:
    from demi.cli.bundle_facts import batching

    if facts.bundle is None:
        return [facts.name, facts.version, "-", "-", "-", "-", "-", f"cannot be opened: {facts.problem}"]
    manifest = facts.bundle.manifest
    return [
        facts.name,
        facts.version,
        manifest.precision,
        mebibytes(facts.bytes),
        batching(facts.bundle),
        _error(facts),
        str(manifest.budget.limits(facts.worst.output)) if facts.worst else str(manifest.budget.default),
        _on_this_machine(facts, manifest.precision) or "-",
    ]


def _on_this_machine(facts: BundleFacts, precision: str) -> str:
    """Return the engine and the proof in short; `demi inspect` has the whole verdict."""
    proof = ""
    if facts.proof:
        speed = "failed its proof" if facts.speedup is None else f"runs at {facts.speedup:.2f}x FP32's speed"
        proof = f"{precision} {speed} on this CPU"
    return "; ".join(text for text in (facts.engine, proof) if text)


def _error(facts: BundleFacts) -> str:
    """Return the largest relative L2 of an output, with its name if there are several."""
    if facts.worst is None:
        return "unknown"
    error = "infinite" if facts.worst.relative_l2 is None else significant(facts.worst.relative_l2)
    return f"{error} ({facts.worst.output})" if len(facts.errors) > 1 else error


def facts_to_json(facts: BundleFacts) -> dict[str, object]:
    """Return what `--json` says about one bundle."""
    document: dict[str, object] = {"path": str(facts.path), "name": facts.name, "version": facts.version}
    if facts.bundle is None:
        return document | {"problem": facts.problem}
    manifest = facts.bundle.manifest
    return document | {
        "version": manifest.version,
        "precision": manifest.precision,
        "bytes": facts.bytes,
        "batched": manifest.batch.joins,
        "max_batch": manifest.batch.max_size,
        "outputs": facts.errors,
        "budget": manifest.budget,
        "engine": facts.engine or None,
        "cpu_proof": facts.proof or None,
    }


def _leftovers(folder: Path) -> list[Path]:
    """Return the drafts of crashed exports in this folder and in those directly below it."""
    from demi.bundles.drafts import abandoned

    if not folder.is_dir():
        return []
    below = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [draft for each in (folder, *below) for draft in abandoned(each / "1")]
