"""Proof of a bundle on a CPU, kept beside the bundle, sealed, in one file for each machine.

    models/minilm/1/proof/cpu-0123456789abcdef.json

A proof holds for one place alone: the processor with its flags, the versions of both runtimes, the bundle's files and the
number of threads. It carries the seal of a key that never leaves this machine (`demi.engines.key`), since a bundle may come
from anywhere; it is no part of the bundle's identity, and the manifest does not know it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass, field, replace

import msgspec

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.engines.key import is_sealed, seal_of
from demi.files import write_bytes_whole
from demi.runtime.onnxruntime.session import runtime_version
from demi.runtime.openvino.capability import Cpu
from demi.runtime.openvino.executed import Executed
from demi.runtime.openvino.options import Hint

SCHEMA = 3
FOLDER = "proof"
PAYS = 1.05
"""Speed relative to FP32 that half must reach at every batch size that was timed: less is within the scatter of timings."""

HOPELESS = 0.8
"""Speed relative to FP32 below which a road is not measured further: one that pays is far from it."""

NO_OPENVINO = "none"
"""In place of OpenVINO's version."""

CLEARLY = 1.05
"""Speed that another road must have, relative to the half model itself, to replace it."""

NEAR = 3.0
"""Error, in budgets, up to which a road is timed although it is refused: another plan could bring it down."""

MISSED = 1.2
"""Speed that a refused road must have, relative to the one that is taken, for another plan to be worth making."""

UNPLANNED = 0.8
"""Share of the budget that half of OpenVINO's own choice may use on a single golden set: no plan leaves a margin."""

log = logging.getLogger("demi.runtime")


@dataclass(frozen=True, slots=True)
class Road:
    """One way to run a bundle in half: a model of the bundle, and the precision that OpenVINO is given."""

    file: str
    hint: Hint
    islands: bool = False
    """True if the nodes that the plan keeps in FP32 stay FP32, although the hint is a half precision."""
    stored: str = ""
    """SHA-256 of the model as it is stored beside the proof, with weights in half; empty where it is not."""

    def __str__(self) -> str:
        return f"{self.file} in {self.hint}{' with FP32 nodes as planned' if self.islands else ''}"


@dataclass(frozen=True, slots=True)
class Timing:
    """Median times of FP32 in ONNX Runtime and of half, turn by turn, in milliseconds."""

    rows: int
    fp32_ms: float
    half_ms: float

    @property
    def speedup(self) -> float:
        """Speed of half relative to FP32."""
        return self.fp32_ms / self.half_ms


@dataclass(frozen=True, slots=True)
class Attempt:
    """Result of one road: nothing but `why` if it failed or died."""

    road: Road
    why: str = ""
    """Reason against it: an error, a death, or the outputs beyond the budget; empty for a right one."""
    errors: dict[str, float] = field(default_factory=dict)
    """Relative L2 of each output from the golden FP32 outputs, measured on the device."""
    timings: tuple[Timing, ...] = ()
    """Of a way that is right, or refused for an error of at most `NEAR` budgets alone."""
    executed: tuple[Executed, ...] = ()
    """The layers that were executed."""
    load: float = 0.0
    """The largest error of an output over its limit: 1 is all of the budget."""

    @property
    def is_right(self) -> bool:
        """Return whether it answers the golden inputs within the budget."""
        return not self.why

    @property
    def speedup(self) -> float:
        """Speed relative to FP32 at the batch size where that is least; 0 if nothing was timed."""
        return min((timing.speedup for timing in self.timings), default=0.0)

    @property
    def error(self) -> float:
        """The largest relative L2 of an output."""
        return max(self.errors.values(), default=0.0)


@dataclass(frozen=True, slots=True)
class Place:
    """Identity of a proof: if any field differs, it is made anew."""

    cpu: str
    """Name and every flag."""
    openvino: str
    onnxruntime: str
    bundle_sha256: str
    """Digest of the manifest, which holds those of all files."""
    threads: int


@dataclass(frozen=True, slots=True)
class Proof:
    """All roads that were tried in one place; `seal` vouches for the rest."""

    schema: int
    place: Place
    cpu: str
    """The processor in words."""
    precision: str
    attempts: tuple[Attempt, ...]
    why_not: str = ""
    """Why nothing could be tried at all."""
    seal: str = ""

    @property
    def best(self) -> Attempt | None:
        """The road to take: the first that is right, unless another right one pays and is clearly faster; None without any.

        The first is what was planned.
        """
        right = [each for each in self.attempts if each.is_right]
        if not right:
            return None
        fastest = max(right, key=lambda each: each.speedup)
        return fastest if fastest.speedup >= max(PAYS, CLEARLY * right[0].speedup) else right[0]

    @property
    def pays(self) -> bool:
        """Return whether half is right here, and faster than FP32 at every batch size."""
        return self.best is not None and self.best.speedup >= PAYS

    @property
    def missed(self) -> Attempt | None:
        """The fastest way that is refused for its error alone, where it is much faster than what is taken; else None.

        None as well where the plan's exceptions make half of OpenVINO's own choice right: no plan is asked for more.
        """
        if any(each.is_right and each.road.islands for each in self.attempts):
            return None
        taken = self.best.speedup if self.best is not None else 0.0
        refused = [each for each in self.attempts if each.timings and not each.is_right]
        fastest = max(refused, key=lambda each: each.speedup, default=None)
        return fastest if fastest is not None and fastest.speedup >= max(PAYS, MISSED * taken) else None

    @property
    def planned(self) -> Attempt | None:
        """Result of the half model itself, node by node as planned, however wrong; None if it did not answer."""
        return next((each for each in self.attempts if each.errors and each.road.file == manifests.MODEL), None)

    def verdict(self) -> str:
        """Return the findings as a sentence without its full stop."""
        best, here = self.best, f"OpenVINO {self.place.openvino} on {self.cpu}"
        if self.place.openvino == NO_OPENVINO:
            return f"{self.precision} cannot be served on {self.cpu}: {self.why_not}"
        if best is None:
            return f"{self.precision} cannot be served by {here}: {self.why_not or '; '.join(_said(each) for each in self.attempts)}"
        found = (
            f"{self.precision} in {here} takes {1 / best.speedup:.2f} of FP32's time at an error of {best.error:.2g}"
        )
        return found if self.pays else f"{found}, which does not pay"


def place_of(bundle: Bundle, cpu: Cpu, openvino: str, threads: int) -> Place:
    """The place of a proof made here and now."""
    content = (bundle.path / manifests.MANIFEST).read_bytes()
    return Place(cpu.identity, openvino, runtime_version(), hashlib.sha256(content).hexdigest(), threads)


def write_proof(bundle: Bundle, proof: Proof, key: bytes) -> bool:
    """Keep a proof beside its bundle, sealed; False, and a line in the log, where nothing can be written there."""
    sealed = replace(proof, seal=seal_of(_content(proof), key))
    path = bundle.path / FOLDER / _name(proof.place)
    try:
        path.parent.mkdir(exist_ok=True)
        write_bytes_whole(path, msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n")
    except OSError as error:
        log.info("%s: the proof cannot be kept beside the bundle: %s", bundle.manifest.name, error.strerror or error)
        return False
    return True


def read_proof(bundle: Bundle, place: Place, key: bytes | None) -> Proof | None:
    """The proof of a bundle in a place; None where there is none, or one that this machine has not sealed."""
    try:
        data = (bundle.path / FOLDER / _name(place)).read_bytes()
    except OSError:
        return None
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        proof = msgspec.json.decode(data, type=Proof)
        if proof.schema == SCHEMA and proof.place == place and key and is_sealed(_content(proof), proof.seal, key):
            return proof
    log.warning("%s: the proof beside the bundle was not made here, and is made anew", bundle.manifest.name)
    return None


def _name(place: Place) -> str:
    return f"cpu-{hashlib.sha256(msgspec.json.encode(place)).hexdigest()[:16]}.json"


def _content(proof: Proof) -> bytes:
    return msgspec.json.encode(replace(proof, seal=""), order="sorted")


def _said(attempt: Attempt) -> str:
    return f"{attempt.road}: {attempt.why}"
