"""Build the manifest of a bundle: its contents, source and tools."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
from pathlib import Path

import numpy as np

from demi.accuracy.budget import Budget
from demi.bundles import bundle
from demi.bundles import manifest as manifests
from demi.bundles.manifest import BatchSpec, Manifest, Provenance
from demi.calibration.samples import Samples
from demi.exporter.request import ExportRequest
from demi.tensors import TensorSpec
from demi.version import __version__


def describe(
    request: ExportRequest,
    budget: Budget,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    batch: BatchSpec,
    samples: Samples,
    *,
    proven: bool = True,
) -> Manifest:
    """Return the manifest without the digests of the files."""
    return Manifest(
        schema=manifests.SCHEMA,
        name=request.output.resolve().name,
        version=request.version,
        precision=request.settings.precision,
        inputs=inputs,
        outputs=outputs,
        batch=batch,
        budget=budget,
        provenance=Provenance(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            source=request.source.name,
            source_sha256=_source_digest(request.source),
            tools={"demi": __version__} | _versions("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "torch"),
            samples=samples.origin,
            proven=proven,
        ),
        input_ranges={} if samples.drawn else input_ranges(samples),
        varying=request.settings.varying,
    )


def input_ranges(samples: Samples) -> dict[str, tuple[float, float]]:
    """Return the range of finite values of every float input over all samples; values outside count as drift."""
    found: dict[str, tuple[float, float]] = {}
    for feeds in samples.feeds:
        for name, values in feeds.items():
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else np.zeros(0)
            if finite.size:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = (min(low, float(finite.min())), max(high, float(finite.max())))
    return found


def _source_digest(path: Path) -> str:
    """Return the digest of a model file, or of the weights in a folder."""
    if path.is_file():
        return bundle.digest(path)
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    return bundle.digest(weights[0]) if weights else ""


def _versions(*packages: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
