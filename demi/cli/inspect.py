"""`demi inspect`: what a bundle contains, with every digest checked."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from demi.cli.console import Console, mebibytes, significant
from demi.cli.options import add_bundle, add_json

if TYPE_CHECKING:
    from demi.bundles.bundle import Bundle
    from demi.cli.bundle_facts import BundleFacts
    from demi.plan import PrecisionPlan
    from demi.tensors import TensorSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi inspect`."""
    add_bundle(parser)
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Show one bundle. A damaged bundle is an error that names the file."""
    from demi.bundles.bundle import open_bundle
    from demi.cli.bundle_facts import read_facts

    bundle = open_bundle(args.bundle)  # raises for a damaged one
    with console.quiet():
        facts = read_facts(bundle.path)
    plan = bundle.plan()
    if args.json:
        console.json(_document(bundle, facts, plan))
        return 0
    manifest = bundle.manifest
    console.table(f"{manifest.name} v{manifest.version}: {bundle.path}", ["", "value "], _summary(bundle, facts))
    console.table("inputs", ["name", "type ", "shape ", "calibrated range"], _inputs(bundle))
    console.table("outputs", ["name", "type ", "shape ", "relative L2", "max abs", "budget "], _outputs(bundle, facts))
    if plan is not None:
        from demi.cli.plan_tables import decision_rows

        console.table("plan (plan.json has every node)", ["", "count", "reason "], decision_rows(plan))
    files = sorted(manifest.files.items())
    rows = [[name, mebibytes(entry.bytes), entry.sha256[:16]] for name, entry in files]
    console.table("files, all as they were written", ["file", "size", "SHA-256 "], rows)
    return 0


def _summary(bundle: Bundle, facts: BundleFacts) -> list[list[str]]:
    manifest, origin = bundle.manifest, bundle.manifest.provenance
    batch = manifest.batch
    rows = [
        ["precision", f"mixed {manifest.precision}"],
        ["requests share runs", f"up to {batch.max_size} rows" if batch.joins else f"no: {batch.reason}"],
        ["padded axes", ", ".join(batch.pad.axes)],
        ["FP32 reference", "in the bundle" if manifest.has_reference else "left out (--no-reference)"],
        ["measured on", origin.samples if manifest.proven else "nothing: exported with --no-run"],
        ["random outputs", "; ".join(manifest.varying.describe())],
        ["made from", f"{origin.source} (SHA-256 {origin.source_sha256[:16]})"],
        ["made at", origin.created],
        ["made with", ", ".join(f"{name} {version}" for name, version in origin.tools.items())],
        ["TensorRT engine", facts.engine or "none"],
        ["proved on this CPU", facts.proof or "nothing yet: `demi serve` proves it when it first loads the bundle"],
        ["size", mebibytes(facts.bytes)],
    ]
    return [row for row in rows if row[1]]


def _inputs(bundle: Bundle) -> list[list[str]]:
    ranges = bundle.manifest.input_ranges
    return [
        [*_tensor(spec), " to ".join(map(significant, ranges[spec.name])) if spec.name in ranges else "-"]
        for spec in bundle.manifest.inputs
    ]


def _outputs(bundle: Bundle, facts: BundleFacts) -> list[list[str]]:
    measured = {error.output: error for error in facts.errors}
    return [
        [
            *_tensor(spec),
            *(
                "-" if value is None else significant(value)
                for value in (getattr(measured.get(spec.name), name, None) for name in ("relative_l2", "max_abs"))
            ),
            str(bundle.manifest.budget.limits(spec.name)),
        ]
        for spec in bundle.manifest.outputs
    ]


def _tensor(spec: TensorSpec) -> list[str]:
    return [spec.name, spec.dtype.value, f"[{', '.join(map(str, spec.shape))}]"]


def _document(bundle: Bundle, facts: BundleFacts, plan: PrecisionPlan | None) -> dict[str, object]:
    return {
        "path": str(bundle.path),
        "manifest": bundle.manifest,
        "bytes": facts.bytes,
        "outputs": facts.errors,
        "plan": plan
        and [
            {"precision": decision.precision.value, "reason": decision.reason.value, "count": count}
            for decision, count in plan.counts()
        ],
        "engine": facts.engine or None,
        "cpu_proof": facts.proof or None,
    }
