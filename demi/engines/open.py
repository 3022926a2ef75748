"""Open the TensorRT engine of a bundle: every condition for loading one is checked here."""

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
    """A session, the record of its engine, and the most rows of one run."""

    session: TrtSession
    record: EngineRecord
    max_rows: int


def open_built_engine(bundle: Bundle, device: Device, key: Path, graph_rows: int = 0) -> OpenedEngine | None:
    """Load the engine beside a bundle; None where there is none.

    Raises BundleError for an engine that was not built here or was built from another model, and DeviceError for
    another GPU or version of TensorRT.
    """
    engine = read_engine(bundle, read_key(key))
    if engine is None:
        return None
    gpu = Cuda(device).describe()
    check_gpu(gpu, device)
    if why := misfit(engine.record, str(require_tensorrt().__version__), gpu):
        raise DeviceError(why, hint=f"build it again on this machine: demi export --tensorrt {bundle.path}")
    specs = (bundle.manifest.inputs, bundle.manifest.outputs)
    session = open_engine(engine.serialized, specs, device, min(graph_rows, engine.max_rows))
    return OpenedEngine(session, engine.record, engine.max_rows)


def require_built_engine(bundle: Bundle, device: Device) -> OpenedEngine:
    """Load the engine beside a bundle with this machine's key. Raises BundleError where there is none."""
    found = open_built_engine(bundle, device, key_path())
    if found is None:
        raise BundleError(
            "the bundle has no engine",
            where=str(bundle.path),
            hint=f"build one on this machine: demi export --tensorrt {bundle.path}",
        )
    return found
