"""Records of TensorRT engines beside a bundle: what an engine was built for, whether it fits, and whether to trust it.

    models/minilm/1/engine/engine.json, model.engine, layers.json, report.html

Loading an engine runs native code. A bundle is untrusted, so a digest beside an engine proves nothing: both come from
the same source. An engine is loaded only when its record carries a seal of this machine's key (`demi.engines.key`) and
its digest is the one in the record. It belongs to the machine and not to the bundle: the manifest does not list it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.engines.key import is_sealed, seal_of
from demi.errors import BundleError
from demi.files import check_writable, write_bytes_whole
from demi.runtime.cuda.bindings import Gpu

SCHEMA = 1
FOLDER = "engine"
RECORD = "engine.json"
ENGINE = "model.engine"
LAYERS = "layers.json"
REPORT = "report.html"

NO_COMPATIBILITY = "none"
SAME_CAPABILITY = "same-compute-capability"
AMPERE_PLUS = "ampere+"
HARDWARE = {
    NO_COMPATIBILITY: "NONE",
    SAME_CAPABILITY: "SAME_COMPUTE_CAPABILITY",
    AMPERE_PLUS: "AMPERE_PLUS",
}
"""Levels of hardware compatibility (the GPUs that an engine runs on besides its own), with their names in TensorRT."""

_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes of one input that an engine takes: the smallest, the one it is tuned for, and the largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """Origin of an engine: its model, TensorRT, GPU and options; `seal` covers all other fields."""

    schema: int
    created: str
    """UTC, ISO 8601."""
    tensorrt: str
    gpu: str
    capability: tuple[int, int]
    driver_cuda: tuple[int, int]
    shapes: dict[str, ShapeRange]
    """Allowed shapes by input."""
    model_sha256: str
    """Digest of the bundle's model.onnx."""
    engine_sha256: str
    engine_bytes: int
    hardware: str = NO_COMPATIBILITY
    version_compatible: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """All other options of the build."""
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """A sealed record and the serialized engine it belongs to."""

    record: EngineRecord
    serialized: bytes

    @property
    def max_rows(self) -> int:
        """Return the most rows along axis 0 that every input may have."""
        return min((each.max[0] for each in self.record.shapes.values() if each.max), default=1)


def check_room(bundle: Bundle) -> None:
    """Raise InputError when no engine can be written beside the bundle; called before the build, which takes minutes."""
    folder = bundle.path / FOLDER
    check_writable((folder if folder.is_dir() else bundle.path) / RECORD)


def write_engine(bundle: Bundle, record: EngineRecord, serialized: bytes | memoryview, key: bytes) -> Path:
    """Write an engine and its sealed record into the bundle's `engine` folder, each file atomically.

    All users may read them, like the model itself, since servers often run as another user. The old record is removed
    first and the new one is written last, so that a record never lies beside another engine.
    """
    folder = bundle.path / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    write_bytes_whole(folder / ENGINE, serialized)
    full = replace(record, engine_sha256=hashlib.sha256(serialized).hexdigest(), engine_bytes=len(serialized), seal="")
    sealed = replace(full, seal=seal_of(_content(full), key))
    text = msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"
    write_bytes_whole(folder / RECORD, text)
    return folder / ENGINE


def read_engine(bundle: Bundle, key: bytes | None) -> Engine | None:
    """Return the engine of a bundle after verifying seal, model and digest; None where there is none.

    `key` is None where this machine has none yet. Raises BundleError for an engine that may not be loaded.
    """
    record = read_record(bundle, key)
    if record is None:
        return None
    folder = bundle.path / FOLDER
    try:
        serialized = (folder / ENGINE).read_bytes()
    except OSError as error:
        raise _refused(folder, f"the engine cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(serialized).hexdigest() != record.engine_sha256:
        raise _refused(folder, "the engine is not the file that was built: its digest differs")
    return Engine(record, serialized)


def read_record(bundle: Bundle, key: bytes | None) -> EngineRecord | None:
    """Return the record of a bundle's engine after verifying seal and model, but not the engine itself.

    None where there is no engine. Raises BundleError as `read_engine` does.
    """
    folder = bundle.path / FOLDER
    try:
        text = (folder / RECORD).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _refused(folder, f"the engine's record cannot be read: {error.strerror or error}") from error
    record = _decode(text, str(folder))
    if key is None or not is_sealed(_content(record), record.seal, key):
        raise _refused(folder, "the engine was not built here: its record does not carry this machine's seal")
    if record.model_sha256 != bundle.manifest.files[manifests.MODEL].sha256:
        raise _refused(folder, "the engine was built from another model.onnx")
    return record


def misfit(record: EngineRecord, tensorrt: str, gpu: Gpu) -> str | None:
    """Return why an engine cannot run with this version of TensorRT on this GPU; None where it can."""
    if record.tensorrt != tensorrt and not (record.version_compatible and _newer(record.tensorrt, tensorrt)):
        return f"the engine was built with TensorRT {record.tensorrt}, but {tensorrt} is installed"
    if record.hardware == AMPERE_PLUS and gpu.capability >= _AMPERE:
        return None
    here, there = ".".join(map(str, gpu.capability)), ".".join(map(str, record.capability))
    if gpu.capability != record.capability:
        return (
            f"the engine was built for compute capability {there} ({record.gpu}), but this GPU has {here} ({gpu.name})"
        )
    if record.hardware == NO_COMPATIBILITY and gpu.name != record.gpu:
        return f"the engine was built for {record.gpu}, but this GPU is {gpu.name}"
    return None


def _newer(built: str, here: str) -> bool:
    """Return whether `here` is the same or a newer version with the same major number, or 11 for an engine of 10."""
    then, now = (tuple(int(part) for part in version.split(".")[:3] if part.isdecimal()) for version in (built, here))
    return then <= now and (then[:1] == now[:1] or (then[:1], now[:1]) == ((10,), (11,)))


def _content(record: EngineRecord) -> bytes:
    return msgspec.json.encode(replace(record, seal=""), order="sorted")


def _decode(data: bytes, where: str) -> EngineRecord:
    try:
        record = msgspec.json.decode(data, type=EngineRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(Path(where), f"`{RECORD}` is not valid: {error}") from error
    if record.schema != SCHEMA:
        raise _refused(Path(where), f"`{RECORD}` has schema {record.schema}; this Demi reads schema {SCHEMA}")
    return record


def _refused(folder: Path, why: str) -> BundleError:
    return BundleError(why, where=str(folder), hint=f"build it on this machine: demi export --tensorrt {folder.parent}")
