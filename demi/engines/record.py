"""TensorRT engines beside a bundle: what each one is, whether it fits this machine, and whether it may be run.

    models/minilm/1/engine/engine.json, model.engine, layers.json, report.html

Loading an engine is running native code. A bundle may come from anywhere, so a digest beside an engine proves nothing:
whoever put the one there put the other. An engine is run only where its record carries the seal of a key that never
leaves this machine (`demi.engines.key`), and its bytes are the ones that the record names. It belongs to the machine and is
no part of the bundle's identity: the manifest does not know it.
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
PLAN = "model.engine"
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
"""Which GPUs besides its own an engine runs on, and the name of each level in TensorRT's HardwareCompatibilityLevel."""

_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The shapes of one input that an engine takes: the smallest, the one it is fastest at, and the largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What an engine was built from, with and for; `seal` vouches for all the rest."""

    schema: int
    created: str
    """UTC, ISO 8601."""
    tensorrt: str
    gpu: str
    capability: tuple[int, int]
    driver_cuda: tuple[int, int]
    shapes: dict[str, ShapeRange]
    """The shapes that each input may have."""
    model_sha256: str
    """Digest of the bundle's model.onnx."""
    engine_sha256: str
    engine_bytes: int
    hardware: str = NO_COMPATIBILITY
    version_compatible: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """Every other option that the builder was given."""
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """A sealed record and the bytes that it names."""

    record: EngineRecord
    plan: bytes

    @property
    def max_rows(self) -> int:
        """The most rows along axis 0 that every input may have."""
        return min((each.max[0] for each in self.record.shapes.values() if each.max), default=1)


def check_room(bundle: Bundle) -> None:
    """Raise InputError when no engine could be written beside the bundle: better told before the build than after it."""
    folder = bundle.path / FOLDER
    check_writable((folder if folder.is_dir() else bundle.path) / RECORD)


def write_engine(bundle: Bundle, record: EngineRecord, plan: bytes | memoryview, key: bytes) -> Path:
    """Write an engine and its sealed record into the bundle's `engine` folder, each file whole or not at all.

    Everybody may read them, as the model they were built from: whoever serves is often another user. The old record goes first and the new one comes last, so that no record ever stands beside another engine.
    """
    folder = bundle.path / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    write_bytes_whole(folder / PLAN, plan)
    full = replace(record, engine_sha256=hashlib.sha256(plan).hexdigest(), engine_bytes=len(plan), seal="")
    sealed = replace(full, seal=seal_of(_content(full), key))
    text = msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"
    write_bytes_whole(folder / RECORD, text)
    return folder / PLAN


def read_engine(bundle: Bundle, key: bytes | None) -> Engine | None:
    """The engine of a bundle, with its seal, its model and its bytes verified; None where there is none.

    Raises BundleError for an engine that may not be run: `key` is None where this machine has sealed nothing yet.
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
        raise _refused(folder, "the engine was not built here: its record carries no seal of this machine")
    if record.model_sha256 != bundle.manifest.files[manifests.MODEL].sha256:
        raise _refused(folder, "the engine was built from another model.onnx")
    try:
        plan = (folder / PLAN).read_bytes()
    except OSError as error:
        raise _refused(folder, f"the engine cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(plan).hexdigest() != record.engine_sha256:
        raise _refused(folder, "the engine is not the file that was built (its digest differs)")
    return Engine(record, plan)


def misfit(record: EngineRecord, tensorrt: str, gpu: Gpu) -> str | None:
    """Why an engine cannot run with this version of TensorRT on this GPU; None where it can."""
    if record.tensorrt != tensorrt and not (record.version_compatible and _newer(record.tensorrt, tensorrt)):
        return f"the engine was built with TensorRT {record.tensorrt}, and this is {tensorrt}"
    if record.hardware == AMPERE_PLUS and gpu.capability >= _AMPERE:
        return None
    here, there = ".".join(map(str, gpu.capability)), ".".join(map(str, record.capability))
    if gpu.capability != record.capability:
        return (
            f"the engine was built for compute capability {there} ({record.gpu}), and this GPU has {here} ({gpu.name})"
        )
    if record.hardware == NO_COMPATIBILITY and gpu.name != record.gpu:
        return f"the engine was built for {record.gpu}, and this GPU is {gpu.name}"
    return None


def _newer(built: str, here: str) -> bool:
    """Whether `here` is the same or a newer version of the same major one, or 11 for an engine of 10."""
    then, now = (tuple(int(part) for part in version.split(".")[:3] if part.isdecimal()) for version in (built, here))
    return then <= now and (then[:1] == now[:1] or (then[:1], now[:1]) == ((10,), (11,)))


def _content(record: EngineRecord) -> bytes:
    return msgspec.json.encode(replace(record, seal=""), order="sorted")


def _decode(data: bytes, where: str) -> EngineRecord:
    try:
        record = msgspec.json.decode(data, type=EngineRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(Path(where), f"`{RECORD}` is not as it should be: {error}") from error
    if record.schema != SCHEMA:
        raise _refused(Path(where), f"`{RECORD}` has schema {record.schema}; this Demi reads schema {SCHEMA}")
    return record


def _refused(folder: Path, why: str) -> BundleError:
    return BundleError(why, where=str(folder), hint=f"build it on this machine: demi export --tensorrt {folder.parent}")
