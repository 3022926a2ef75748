"""Real bundles for tests, and ways to damage them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from demi import manifest as manifests
from demi.budget import Budget
from demi.bundle import open_bundle, seal
from exporter.find import PlanSettings
from exporter.pipeline import ExportRequest, export_bundle
from exporter.source import SourceOptions
from tests.models import MLP, parse, text

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def export(folder: Path, source: str = MLP, budget: Budget | None = None, report: bool = False, **fields) -> Path:
    """Export a model in text as `folder/tiny`, by the op list; the bundle's folder."""
    path = folder / "tiny.onnx"
    path.write_bytes(text(parse(source)))
    settings = PlanSettings(calibrate=False, budget=budget or Budget())
    options = SourceOptions(samples=({"x": X},))
    request = ExportRequest(path, folder / "tiny", settings=settings, options=options, report=report, **fields)
    return export_bundle(replace(request, samples_origin="x.npz")).path


def reseal(bundle: Path) -> None:
    """Make the manifest vouch for the files as they are."""
    seal(bundle, open_bundle(bundle, verify=False).manifest)


def edit_model(bundle: Path, edit: Callable[[ir.Model], None], name: str = manifests.MODEL) -> None:
    """Change a model of a bundle, and vouch for it."""
    model = ir.load(bundle / name)
    edit(model)
    (bundle / name).write_bytes(text(model))
    reseal(bundle)
