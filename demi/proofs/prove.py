"""Proof that half pays on this CPU: every road is tried in another process, and a death there is a verdict.

OpenVINO has ended the process on some CPUs while it compiled, and has multiplied BF16 wrongly on others. So nothing of it
is trusted here before the golden inputs came out right, in a process whose end ends nothing else.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.engines.key import make_key, read_key
from demi.errors import CrashError, DemiError
from demi.processes.trial_process import TrialProcess
from demi.proofs.attempt import OPENER, SECONDS
from demi.proofs.record import (
    HOPELESS,
    NO_OPENVINO,
    SCHEMA,
    Attempt,
    Place,
    Proof,
    Road,
    Timing,
    place_of,
    read_proof,
    write_proof,
)
from demi.proofs.stored import fp32_nodes, remove_unused
from demi.runtime.openvino.capability import Cpu, read_cpu
from demi.runtime.openvino.options import HINTS
from demi.runtime.openvino.session import openvino_version

log = logging.getLogger("demi.runtime")

TRY, TIME, COMPARE = (f"demi.proofs.attempt:{name}" for name in ("try_road", "time_road", "time_roads"))
LIMIT_S = 120.0
"""Seconds that one road may take: to compile, to answer the golden inputs and to be timed."""
CLOSE = 0.5
"""Speed relative to the fastest road from which on roads are timed again, beside each other: others who share a machine
have halved its speed between two roads."""
LARGEST_TOGETHER = 1 << 30
"""Bytes of the FP32 model, with its external weights, up to which several roads are opened at once."""


@dataclass(frozen=True, slots=True)
class Proving:
    """Settings of a proof; tests put in other processors, runtimes and limits."""

    cpu: Cpu = field(default_factory=read_cpu)
    openvino: str | None = field(default_factory=openvino_version)
    """The version that is installed; None where there is none."""
    opener: str = OPENER
    """"module:function", which opens a road."""
    limit_s: float = LIMIT_S
    """For each road; 0 is no limit."""
    seconds: float = SECONDS
    """For which each batch size is timed."""


def proof_of(bundle: Bundle, threads: int, key: Path, proving: Proving | None = None, *, anew: bool = False) -> Proof:
    """The proof of a bundle on this machine: the one beside it, or one that is made now and kept there.

    `threads` are those of a run; with `anew` a proof that is there is not read.
    """
    proving = proving or Proving()
    place = place_of(bundle, proving.cpu, proving.openvino or NO_OPENVINO, threads)
    if not anew and (found := known_proof(bundle, place, key)):
        return found
    if why := _why_nothing(bundle, proving):
        return Proof(SCHEMA, place, str(proving.cpu), bundle.manifest.precision, (), why)
    return _make(bundle, place, key, proving)


def known_proof(bundle: Bundle, place: Place, key: Path) -> Proof | None:
    """The proof beside a bundle, where this machine has made one in this place."""
    try:
        return read_proof(bundle, place, read_key(key))
    except DemiError as error:
        log.warning("%s: the proof beside the bundle is not read: %s", bundle.manifest.name, error.message)
        return None


def roads_of(bundle: Bundle) -> tuple[Road, ...]:
    """The ways to run a bundle in half: its half model node by node, and its FP32 model in half as OpenVINO likes, with
    and without the plan's exceptions."""
    hint = HINTS[bundle.manifest.precision]
    free, planned = Road(manifests.REFERENCE, hint), Road(manifests.REFERENCE, hint, islands=True)
    return (Road(manifests.MODEL, "dynamic"), free, *((planned,) if fp32_nodes(bundle) else ()))


def promise_of(bundle: Bundle, precision: str, threads: int, proving: Proving | None = None) -> float:
    """Return how many times as fast as FP32 this CPU computes the FP32 model wholly in `fp16` or `bf16`, however wrong.

    Hardly any plan of that format is faster. 0 where it cannot be tried, fails or dies.
    """
    proving = proving or Proving()
    if _why_nothing(bundle, proving) or not proving.cpu.has_units(precision):
        return 0.0
    road = Road(manifests.REFERENCE, HINTS[precision])
    with tempfile.TemporaryDirectory(prefix="demi-proof-") as folder, TrialProcess(TIME, proving.limit_s) as trial:
        return _try(trial, bundle, road, threads, Path(folder) / "promise.json", proving).speedup


def _why_nothing(bundle: Bundle, proving: Proving) -> str:
    """Why there is nothing to try; empty where there is something."""
    if proving.openvino is None:
        return "OpenVINO is not installed (pip install 'demi-inference[openvino]')"
    if not proving.cpu.has_units(bundle.manifest.precision):
        return f"{proving.cpu.name} has no units for it"
    if not (bundle.manifest.proven and bundle.has_golden):
        return "the bundle holds no golden inputs to prove anything by"
    if bundle.reference_path is None:
        return "the bundle holds no FP32 reference to be faster than"
    return ""


def _make(bundle: Bundle, place: Place, key: Path, proving: Proving) -> Proof:
    log.info("%s: proving %s on this CPU, once", bundle.manifest.name, bundle.manifest.precision)
    with tempfile.TemporaryDirectory(prefix="demi-proof-") as folder:
        attempts = _attempts(bundle, place.threads, Path(folder), proving)
        attempts = _timed_together(bundle, attempts, place.threads, Path(folder), proving)
    proof = _without_unused(Proof(SCHEMA, place, str(proving.cpu), bundle.manifest.precision, attempts))
    _keep(bundle, proof, key)
    remove_unused(bundle)
    return proof


def _attempts(bundle: Bundle, threads: int, folder: Path, proving: Proving) -> tuple[Attempt, ...]:
    """Try one road after the other, each timed beside FP32 alone."""
    attempts: list[Attempt] = []
    with TrialProcess(TRY, proving.limit_s) as trial:
        for number, road in enumerate(roads_of(bundle)):
            if is_needless(road, attempts):
                break
            attempts.append(_try(trial, bundle, road, threads, folder / f"{number}.json", proving))
    return tuple(attempts)


def _timed_together(
    bundle: Bundle, attempts: tuple[Attempt, ...], threads: int, folder: Path, proving: Proving
) -> tuple[Attempt, ...]:
    """Return the attempts with the times that their roads have beside each other, where several are nearly as fast."""
    close = close_in_speed(attempts)
    size = sum(file.bytes for name, file in bundle.manifest.files.items() if name.startswith(manifests.REFERENCE))
    if len(close) < 2 or size > LARGEST_TOGETHER:
        return attempts
    result = folder / "together.json"
    try:
        with TrialProcess(COMPARE, proving.limit_s) as trial:
            roads = [each.road for each in close]
            trial.call(bundle.path, roads, threads, result, proving.opener, proving.seconds)
        found = msgspec.json.decode(result.read_bytes(), type=list[tuple[Timing, ...]])
    except (CrashError, OSError, msgspec.MsgspecError) as error:
        log.info("%s: the roads are not timed together: %s", bundle.manifest.name, error)
        return attempts
    timings = dict(zip(roads, found, strict=True))
    return tuple(replace(each, timings=timings.get(each.road, each.timings)) for each in attempts)


def close_in_speed(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return the attempts that others who share the machine may have put in a wrong order; none without a right one."""
    timed = [each for each in attempts if each.timings]
    fastest = max((each.speedup for each in timed), default=0.0)
    close = [each for each in timed if each.speedup >= CLOSE * fastest]
    return close if any(each.is_right for each in close) else []


def is_needless(road: Road, attempts: Sequence[Attempt]) -> bool:
    """Return whether a road cannot win: the half model is so slow that no other would pay, or it only adds exceptions to
    one that is right."""
    if not attempts:
        return False
    first, last = attempts[0], attempts[-1]
    return (first.is_right and first.speedup < HOPELESS) or (road.islands and last.is_right)


def _without_unused(proof: Proof) -> Proof:
    """Forget the stored models of roads that are not taken."""
    attempts = (
        each if each is proof.best else replace(each, road=replace(each.road, stored="")) for each in proof.attempts
    )
    return replace(proof, attempts=tuple(attempts))


def _try(trial: TrialProcess, bundle: Bundle, road: Road, threads: int, result: Path, proving: Proving) -> Attempt:
    """Return the result of one road, its death included."""
    try:
        trial.call(bundle.path, road, threads, result, proving.opener, proving.seconds)
        return msgspec.json.decode(result.read_bytes(), type=Attempt)
    except CrashError as error:
        return Attempt(road, why=error.message)
    except (OSError, msgspec.MsgspecError):  # no process could be started, or it met what nobody foresaw
        return Attempt(road, why="the trial gave no result")


def _keep(bundle: Bundle, proof: Proof, key: Path) -> None:
    try:
        write_proof(bundle, proof, make_key(key))
    except (DemiError, OSError) as error:
        log.info("%s: the proof is not kept: %s", bundle.manifest.name, error)
