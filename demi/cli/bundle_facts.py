"""Facts about a bundle for people: what its manifest and accuracy.json hold, and what this machine knows about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from demi.bundles import manifest as manifests
from demi.bundles.bundle import open_bundle
from demi.errors import DemiError, PackageError

if TYPE_CHECKING:
    from demi.bundles.bundle import Bundle
    from demi.proofs.record import Proof

VERSION = re.compile(r"[1-9]\d*")


class OutputError(msgspec.Struct):
    """Measured error of one output, from accuracy.json; null stands for infinity."""

    output: str
    relative_l2: float | None = None
    max_abs: float | None = None
    cosine: float | None = None


class _Accuracy(msgspec.Struct):
    outputs: list[OutputError] = []


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """Facts of a bundle for `demi list` and `demi inspect`; `problem` is the reason if it cannot be opened."""

    path: Path
    name: str
    version: str
    bundle: Bundle | None = None
    errors: tuple[OutputError, ...] = ()
    engine: str = ""
    """The TensorRT engine beside it, or why it cannot be used; empty if there is none."""
    proof: str = ""
    """Proof of half precision on this CPU, in words; empty if there is none."""
    speedup: float | None = None
    """Speed of half relative to FP32 there; None if nothing was proved, or half was wrong."""
    problem: str = ""

    @property
    def bytes(self) -> int:
        """Return the size of all files together."""
        return sum(entry.bytes for entry in self.bundle.manifest.files.values()) if self.bundle else 0

    @property
    def worst(self) -> OutputError | None:
        """Return the output with the largest relative error; infinity, written as null, first."""
        return max(self.errors, key=lambda each: (each.relative_l2 is None, each.relative_l2 or 0.0), default=None)


def read_facts(path: Path, *, verify: bool = False) -> BundleFacts:
    """Return the facts of the bundle in this folder, with a problem instead if it cannot be opened.

    With `verify`, every digest is checked.
    """
    name, version = (path.parent.name, path.name) if VERSION.fullmatch(path.name) else (path.name, "-")
    try:
        bundle = open_bundle(path, verify=verify)
    except (DemiError, OSError) as error:
        return BundleFacts(path, name, version, problem=str(error).splitlines()[0])
    manifest = bundle.manifest
    proof = _proof(bundle)
    return BundleFacts(
        path,
        manifest.name,
        str(manifest.version),
        bundle,
        errors=_errors(bundle),
        engine=_engine(bundle),
        proof=proof.verdict() if proof else "",
        speedup=proof.best.speedup if proof and proof.best else None,
    )


def batching(bundle: Bundle) -> str:
    """Return how many rows may share a run, or `no`."""
    batch = bundle.manifest.batch
    return f"up to {batch.max_size}" if batch.joins else "no"


def _errors(bundle: Bundle) -> tuple[OutputError, ...]:
    """Return the errors that were measured at export; none if they were not, or if the file cannot be read."""
    if not bundle.manifest.proven:
        return ()
    try:
        data = (bundle.path / manifests.ACCURACY).read_bytes()
        return tuple(msgspec.json.decode(data, type=_Accuracy).outputs)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()


def _engine(bundle: Bundle) -> str:
    from demi.engines.key import key_path, read_key
    from demi.engines.record import read_record

    try:
        record = read_record(bundle, read_key(key_path()))
    except DemiError as error:
        return error.message
    return f"TensorRT {record.tensorrt} for {record.gpu}" if record else ""


def _proof(bundle: Bundle) -> Proof | None:
    """Return the proof that this machine made, with the threads that a server uses by default."""
    from demi.engines.key import key_path
    from demi.proofs.prove import known_proof
    from demi.proofs.record import place_of
    from demi.runtime.cores import usable_cores
    from demi.runtime.openvino.capability import read_cpu
    from demi.runtime.openvino.session import openvino_version

    try:
        version = openvino_version()
        place = place_of(bundle, read_cpu(), version or "none", usable_cores()) if version else None
    except PackageError:  # without ONNX Runtime, nothing was proved
        return None
    return known_proof(bundle, place, key_path()) if place else None
