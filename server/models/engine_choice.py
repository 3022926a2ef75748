"""How a bundle's model is run: a TensorRT engine that was built here, or ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.engines.open import open_built_engine
from demi.errors import BundleError, DemiError, DeviceError
from demi.runtime.base import Device, Session
from demi.runtime.onnxruntime.conv_layout import faster_layout, has_convolutions
from demi.runtime.onnxruntime.cuda_graphs import can_replay
from demi.runtime.onnxruntime.session import SessionSettings
from demi.server.settings import ServeSettings
from demi.tensors import check_feeds

log = logging.getLogger("demi.server")

Opener = Callable[[Path, Device, SessionSettings], Session]


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, and the most rows it takes where that is less than the bundle says."""

    session: Session
    max_rows: int | None = None


def open_chosen(
    bundle: Bundle, model: Path, device: Device, settings: ServeSettings, wanted: SessionSettings, opener: Opener
) -> Opened:
    """The engine beside the bundle, where `--engine` and this machine allow it, else `model` in ONNX Runtime.

    With `--engine auto` the log says why an engine is left alone; with `require` that is the error.
    """
    suits = device.kind == "cuda" and model == bundle.model_path
    if settings.engine == "require" and not suits:
        raise DeviceError("--engine require: engines run on a GPU", hint="add --device cuda, or use --engine auto")
    rows = graph_rows(bundle, settings) if device.kind == "cuda" else 0
    if settings.engine != "off" and suits:
        try:
            if (opened := _open_engine(bundle, device, settings, rows)) is not None:
                return opened
        except DemiError as error:
            if settings.engine == "require":
                raise
            log.warning("%s: ONNX Runtime is used instead of its engine: %s", bundle.manifest.name, error)
    return Opened(_open_onnx(bundle, model, device, replace(wanted, graph_rows=rows), opener))


def graph_rows(bundle: Bundle, settings: ServeSettings) -> int:
    """The largest batch that CUDA graphs are recorded for; 0 where they are off, or shapes do not follow from rows.

    Batches are filled up with rows of their own, which must not change the others' answers.
    """
    manifest = bundle.manifest
    if not settings.cuda_graphs or not manifest.batch.joins:
        return 0
    if not can_replay(manifest.inputs, manifest.outputs):
        log.warning("%s: no CUDA graphs, for other axes than the first are free", manifest.name)
        return 0
    return settings.max_batch or manifest.batch.max_size


def _open_engine(bundle: Bundle, device: Device, settings: ServeSettings, rows: int) -> Opened | None:
    """The bundle's engine, loaded; None where there is none and none is required."""
    found = open_built_engine(bundle, device, settings.engine_key, rows)
    if found is not None:
        log.info("%s: TensorRT %s on %s", bundle.manifest.name, found.record.tensorrt, device)
        return Opened(found.session, found.max_rows)
    if settings.engine == "require":
        raise BundleError(
            "--engine require: the bundle has no engine",
            where=str(bundle.path),
            hint=f"build one on this machine: demi export --tensorrt {bundle.path}",
        )
    return None


def _open_onnx(bundle: Bundle, model: Path, device: Device, wanted: SessionSettings, opener: Opener) -> Session:
    """An ONNX Runtime session; for convolutions on a GPU, in the layout that is faster on the golden inputs."""
    session = opener(model, device, wanted)
    if not has_convolutions(session) or manifests.GOLDEN not in bundle.manifest.files:
        return session
    feeds = check_feeds(session.inputs, bundle.golden().inputs[0], cast_floats=True)
    return faster_layout(session, lambda: opener(model, device, replace(wanted, nhwc=True)), feeds)
