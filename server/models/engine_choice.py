"""Engine choice: run a bundle's model with the TensorRT engine built on this machine, or with ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

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

OpenSession = Callable[[Path, Device, SessionSettings], Session]
"""Opens an ONNX file in ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class ChosenSession:
    """An open session, and the most rows it accepts if that is less than the bundle's maximum."""

    session: Session
    max_rows: int | None = None


def open_engine_or_onnx(
    bundle: Bundle,
    model: Path,
    device: Device,
    settings: ServeSettings,
    wanted: SessionSettings,
    open_session: OpenSession,
) -> ChosenSession:
    """Open the bundle's engine if `--engine` and this machine allow it, else `model` in ONNX Runtime.

    If the engine cannot be used, `--engine auto` logs the reason, and `--engine require` raises it as a DemiError.
    """
    suits = device.kind == "cuda" and model == bundle.model_path
    if settings.engine == "require" and not suits:
        raise DeviceError("--engine require: engines run on a GPU", hint="add --device cuda, or use --engine auto")
    rows = graph_rows(bundle, settings) if device.kind == "cuda" else 0
    if settings.engine != "off" and suits:
        try:
            if (chosen := _open_engine(bundle, device, settings, rows)) is not None:
                return chosen
        except DemiError as error:
            if settings.engine == "require":
                raise
            log.warning("%s: using ONNX Runtime instead of the engine: %s", bundle.manifest.name, error)
    return ChosenSession(_open_onnx(bundle, model, device, replace(wanted, graph_rows=rows), open_session))


def graph_rows(bundle: Bundle, settings: ServeSettings) -> int:
    """Return the largest batch to record CUDA graphs for; 0 if they are off or shapes do not follow from the rows.

    Batches are filled up with padding rows, so rows must be independent of each other.
    """
    manifest = bundle.manifest
    if not settings.cuda_graphs or not manifest.batch.joins:
        return 0
    if not can_replay(manifest.inputs, manifest.outputs):
        log.warning("%s: CUDA graphs are off, because axes other than the first are dynamic", manifest.name)
        return 0
    return settings.max_batch or manifest.batch.max_size


def _open_engine(bundle: Bundle, device: Device, settings: ServeSettings, rows: int) -> ChosenSession | None:
    """Open the bundle's engine. Return None if it has none; BundleError if one is required."""
    found = open_built_engine(bundle, device, settings.engine_key, rows)
    if found is not None:
        log.info("%s: TensorRT %s on %s", bundle.manifest.name, found.record.tensorrt, device)
        return ChosenSession(found.session, found.max_rows)
    if settings.engine == "require":
        raise BundleError(
            "--engine require: the bundle has no engine",
            where=str(bundle.path),
            hint=f"build one on this machine: demi export --tensorrt {bundle.path}",
        )
    return None


def _open_onnx(
    bundle: Bundle, model: Path, device: Device, wanted: SessionSettings, open_session: OpenSession
) -> Session:
    """Open an ONNX Runtime session; a GPU session with convolutions in the layout faster on the golden inputs."""
    session = open_session(model, device, wanted)
    if not has_convolutions(session) or not bundle.has_golden:
        return session
    feeds = check_feeds(session.inputs, bundle.golden().inputs[0], cast_floats=True)
    return faster_layout(session, lambda: open_session(model, device, replace(wanted, nhwc=True)), feeds)
