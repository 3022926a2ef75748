"""Real bundles for tests, and functions that damage them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.bundles import manifest as manifests
from demi.bundles.bundle import open_bundle, write_manifest
from demi.calibration.sessions import save_model
from demi.exporter.passes.lower import apply_plan
from demi.exporter.pipeline import export_bundle
from demi.exporter.planning.find_plan import PlanSettings
from demi.exporter.request import ExportRequest
from demi.exporter.sources.options import SourceOptions
from demi.plan import Precision, make_plan, read_plan
from demi.tensors import Feeds
from tests.models import MLP, parse, text

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def export(
    folder: Path,
    source: str = MLP,
    budget: Budget | None = None,
    report: bool = False,
    name: str = "tiny",
    inputs: Feeds | None = None,
    rescale: bool = False,
    **fields,
) -> Path:
    """Export a model text as `folder/name` and return the bundle's folder; by the op list, unless samples are given.

    What overflows is left as it is, unless `rescale` is set: tests of damage want it to overflow.
    """
    path = folder / f"{name}.onnx"
    path.write_bytes(text(parse(source)))
    settings = PlanSettings(calibrate=inputs is not None, budget=budget or Budget(), rescale=rescale)
    options = SourceOptions(samples=(inputs or {"x": X},))
    request = ExportRequest(path, folder / name, settings=settings, options=options, report=report, **fields)
    return export_bundle(replace(request, samples_origin="x.npz")).path


def reseal(bundle: Path) -> None:
    """Write new digests of the current files into the manifest."""
    write_manifest(bundle, open_bundle(bundle, verify=False).manifest)


def edit_model(bundle: Path, edit: Callable[[ir.Model], None], name: str = manifests.MODEL) -> None:
    """Edit a model of a bundle and write its new digest into the manifest."""
    model = ir.load(bundle / name)
    edit(model)
    (bundle / name).write_bytes(text(model))
    reseal(bundle)


def force_half(bundle: Path) -> None:
    """Edit a bundle's plan so that every node is half, and apply it."""
    plan = read_plan(bundle / manifests.PLAN)
    decisions = [replace(decision, precision=Precision.HALF) for decision in plan.decisions.values()]
    forced = make_plan(plan.precision, decisions)
    (bundle / manifests.PLAN).write_bytes(forced.to_json())
    save_model(apply_plan(ir.load(bundle / manifests.REFERENCE), forced).model, bundle / manifests.MODEL)
    reseal(bundle)


def scale_weight(name: str, factor: float, position: int = 0) -> Callable[[ir.Model], None]:
    """Return an edit that scales one element of one weight."""

    def edit(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        numbers = value.const_value.numpy().copy()
        numbers.flat[position] *= factor
        value.const_value = ir.Tensor(numbers, name=name)

    return edit
