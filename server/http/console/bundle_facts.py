"""Facts of a bundle about its model: the plan with the graph, its versions side by side, and the page of its export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle, open_bundle
from demi.errors import BundleError
from demi.onnx_file.graph import read_graph
from demi.plan import Decision, PrecisionPlan
from demi.plan_changes import compare_plans
from demi.server.errors import NotFoundError
from demi.server.models.model import Model

CAST = "cast between precisions"
"""Reason of the nodes that the export inserted."""

REPORT = "report.html"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlanNode:
    """One node of the served graph, with its decision; empty texts for a node that computes with no floats."""

    node: str
    op_type: str
    precision: str = ""
    """`half`, `fp32`, or empty."""
    reason: str = ""
    evidence: str = ""
    sensitivity: float | None = None
    share: float | None = None
    reads: tuple[int, ...] = ()
    """Positions of the nodes whose outputs it reads."""


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """One version of a model as its bundle describes it; `error` if the bundle cannot be read."""

    version: str
    precision: str = ""
    created: str = ""
    source: str = ""
    samples: str = ""
    """The inputs that its accuracy was measured on, without the folders of the machine that exported it."""
    model_bytes: int = 0
    half_nodes: int | None = None
    fp32_nodes: int | None = None
    predicted: dict[str, float] = field(default_factory=dict)
    """Relative L2 that the export predicted for its plan, by output."""
    outputs: list[dict[str, Any]] = field(default_factory=list)
    """The export's measurements of each output, as in `accuracy.json`."""
    has_report: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class PlanChange:
    """One node whose decision differs between two versions; empty texts where a version lacks the node."""

    node: str
    op_type: str
    was: str
    was_reason: str
    now: str
    now_reason: str


def plan_nodes(model: Model) -> list[PlanNode]:
    """Return the nodes of the bundle's half model in order, with their decisions, then decisions on nodes that it lacks.

    Raises NotFoundError for a model without a bundle, and BundleError if its files cannot be read.
    """
    bundle = bundle_of(model)
    plan = bundle.plan()
    decisions = dict(plan.decisions) if plan else {}
    graph = _read(bundle, bundle.model_path, read_graph)
    nodes = [_plan_node(node.name, node.op_type, decisions.pop(node.name, None), node.reads) for node in graph]
    return nodes + [_plan_node(name, each.op_type, each, ()) for name, each in decisions.items()]


def version_facts(model: Model) -> VersionFacts:
    """Return what a version's bundle says about it."""
    try:
        bundle = bundle_of(model)
        plan = bundle.plan()
        measured = _accuracy(bundle)
    except (BundleError, NotFoundError) as error:
        return VersionFacts(model.version, error=error.message)
    manifest = bundle.manifest
    return VersionFacts(
        version=model.version,
        precision=manifest.precision,
        created=manifest.provenance.created,
        source=manifest.provenance.source,
        samples=manifest.provenance.samples.rpartition("/")[2],
        model_bytes=sum(file.bytes for name, file in manifest.files.items() if name.startswith(manifests.MODEL)),
        half_nodes=plan.half_nodes if plan else None,
        fp32_nodes=len(plan.computing) - plan.half_nodes if plan else None,
        predicted=measured.get("predicted_relative_l2") or {},
        outputs=measured.get("outputs", []),
        has_report=REPORT in manifest.files,
    )


def plan_changes(was: Model, now: Model) -> list[PlanChange]:
    """Return every node whose precision or reason differs between two versions. Raises NotFoundError without a plan."""
    return [
        PlanChange(change.node, change.op_type, *_words(change.was), *_words(change.now))
        for change in compare_plans(_plan(was), _plan(now))
    ]


def report_page(model: Model) -> bytes:
    """Return the page of the bundle's export. Raises NotFoundError if it has none."""
    bundle = bundle_of(model)
    if REPORT not in bundle.manifest.files:
        raise NotFoundError(
            f"the bundle of `{model.name}` version {model.version} holds no report",
            hint="install the extra `report` where it is exported",
        )
    return _read(bundle, bundle.path / REPORT, Path.read_bytes)


def bundle_of(model: Model) -> Bundle:
    """Open the bundle of a model, whose digests were verified when it was loaded. Raises NotFoundError without one."""
    if model.path is None:
        raise NotFoundError(f"model `{model.name}` is not served from a bundle")
    return open_bundle(model.path, verify=False)


def _plan(model: Model) -> PrecisionPlan:
    plan = bundle_of(model).plan()
    if plan is None:
        raise NotFoundError(f"the bundle of `{model.name}` version {model.version} holds no plan")
    return plan


def _plan_node(name: str, op_type: str, decision: Decision | None, reads: tuple[int, ...]) -> PlanNode:
    if decision is None:
        return PlanNode(name, op_type, reason=CAST if op_type == "Cast" else "", reads=reads)
    precision, reason = _words(decision)
    return PlanNode(name, op_type, precision, reason, decision.evidence, decision.sensitivity, decision.share, reads)


def _words(decision: Decision | None) -> tuple[str, str]:
    return (decision.precision.label.lower(), decision.reason.value) if decision else ("", "")


def _accuracy(bundle: Bundle) -> dict[str, Any]:
    """Return the measurements of the export; empty for a bundle without them."""
    if manifests.ACCURACY not in bundle.manifest.files:
        return {}
    return _read(
        bundle,
        bundle.path / manifests.ACCURACY,
        lambda path: msgspec.json.decode(path.read_bytes(), type=dict[str, Any]),
    )


def _read(bundle: Bundle, path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except (OSError, ValueError, IndexError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise BundleError(
            f"`{path.name}` cannot be read", where=str(bundle.path), hint="export the model again"
        ) from error
