"""From a bundle to a running engine: every condition under which an engine may be loaded, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demi.bundles.bundle import Bundle
from demi.engines.key import key_path, read_key
from demi.engines.record import EngineRecord, misfit, read_engine
from demi.errors import BundleError, DeviceError
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.capability import check_gpu
from demi.runtime.tensorrt.session import TrtSession, open_engine, require_tensorrt


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """A session, what its engine is, and the most rows that one run may take."""

    session: TrtSession
    record: EngineRecord
    max_rows: int


def open_built_engine(bundle: Bundle, device: Device, key: Path, graph_rows: int = 0) -> OpenedEngine | None:
    """The engine beside a bundle, loaded; None where there is none.

    Raises the DemiError that says why it may not or cannot be run: BundleError for an engine that was not built here
    or from another model, DeviceError for another GPU or version of TensorRT.
    """
    engine = read_engine(bundle, read_key(key))
    if engine is None:
        return None
    gpu = Cuda(device).describe()
    check_gpu(gpu, device)
    if why := misfit(engine.record, str(require_tensorrt().__version__), gpu):
        raise DeviceError(why, hint=f"build it again on this machine: demi export --tensorrt {bundle.path}")
    specs = (bundle.manifest.inputs, bundle.manifest.outputs)
    session = open_engine(engine.plan, specs, device, min(graph_rows, engine.max_rows))
    return OpenedEngine(session, engine.record, engine.max_rows)


def require_built_engine(bundle: Bundle, device: Device) -> OpenedEngine:
    """The engine beside a bundle, loaded with this machine's key; BundleError where there is none."""
    found = open_built_engine(bundle, device, key_path())
    if found is None:
        raise BundleError(
            "the bundle has no engine",
            where=str(bundle.path),
            hint=f"build one on this machine: demi export --tensorrt {bundle.path}",
        )
    return found
