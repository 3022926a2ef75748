"""One road tried: the golden inputs in half on this CPU, judged by the budget, timed beside FP32. For a process that may
die of it.
"""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import msgspec
import numpy as np

from demi.accuracy.compare import Comparison, compare
from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle, open_bundle
from demi.errors import DemiError, DeviceError
from demi.files import write_bytes_whole
from demi.float16 import BF16, from_half
from demi.processes.recorder import doing
from demi.proofs.record import HOPELESS, NEAR, UNPLANNED, Attempt, Road, Timing
from demi.proofs.stored import HALF, is_stored, model_of, store
from demi.proofs.turns import median_ms, with_batch
from demi.runtime.base import CPU, Session
from demi.runtime.onnxruntime.session import SessionSettings
from demi.runtime.onnxruntime.session import open_session as open_onnx
from demi.runtime.openvino.capability import CAPABILITIES
from demi.runtime.openvino.executed import Executed
from demi.runtime.openvino.options import OvSettings
from demi.runtime.openvino.session import capabilities, open_sessions
from demi.tensors import DType, Feeds, check_feeds

SECONDS = 0.5
"""For which a batch size is timed."""
LARGEST = 8
"""Rows of the larger batch that is timed: as telling as more, and a server waits for it when it first starts."""
STUDENT = (6.314, 2.920, 2.353)
"""95% quantiles of Student's t for 1, 2 and 3 degrees of freedom, and more for the last."""
OPENER = "demi.proofs.attempt:open_road"


class Half(Session, Protocol):
    """A session that knows what it really ran."""

    @property
    def executed(self) -> tuple[Executed, ...]: ...


Opener = Callable[[Bundle, Road, int, int], list[Session]]
"""Opens a bundle's road with so many threads: so many sessions."""


def open_road(bundle: Bundle, road: Road, threads: int, count: int = 1) -> list[Session]:
    """Sessions that run a bundle in half in OpenVINO, all of one compiled model, a stream for each.

    A road in FP32, which nothing takes by itself, runs on every CPU. Raises DeviceError where OpenVINO lacks the half type.
    """
    needed = CAPABILITIES[HALF.get(road.hint, bundle.manifest.precision)]
    if road.hint != "f32" and needed not in capabilities():
        raise DeviceError(f"OpenVINO computes no {needed} on this CPU", hint="serve it with --runtime onnxruntime")
    specs = (bundle.manifest.inputs, bundle.manifest.outputs)
    settings = OvSettings(road.hint, threads * count, streams=count)
    with model_of(bundle, road) as model:
        return list(open_sessions(model, settings, specs, count))


def try_road(
    path: Path, road: Road, threads: int, result: Path, opener: str = OPENER, seconds: float = SECONDS
) -> None:
    """Write what comes of a road into the file `result`; `opener`, "module:function", makes its session.

    An FP32 model that is computed in half is stored with weights in half first, and what is stored is tried.
    """
    bundle = open_bundle(path, verify=False)
    make = _opener(opener)
    try:
        if is_stored(road):
            road = replace(road, stored=store(bundle, road))
        attempt = measure(bundle, road, threads, make, seconds)
    except DemiError as error:
        attempt = Attempt(road, why=error.message)
    write_bytes_whole(result, msgspec.json.encode(attempt))


def time_road(
    path: Path, road: Road, threads: int, result: Path, opener: str = OPENER, seconds: float = SECONDS
) -> None:
    """Write the times of a road beside FP32 into the file `result`, however wrong its answers; none where it fails."""
    bundle = open_bundle(path, verify=False)
    make = _opener(opener)
    try:
        timings = timed(bundle, make(bundle, road, threads, 1)[0], threads, seconds)
    except DemiError as error:
        result.write_bytes(msgspec.json.encode(Attempt(road, error.message)))
    else:
        result.write_bytes(msgspec.json.encode(Attempt(road, timings=timings)))


def time_roads(
    path: Path, roads: Sequence[Road], threads: int, result: Path, opener: str = OPENER, seconds: float = SECONDS
) -> None:
    """Write the timings of several roads into the file `result`, a list for each; nothing where one cannot be opened.

    All take turns with FP32, so that a machine that others slow down for some seconds does not choose between them.
    """
    bundle = open_bundle(path, verify=False)
    assert bundle.reference_path is not None
    make = _opener(opener)
    fp32 = open_onnx(bundle.reference_path, CPU, SessionSettings(threads=threads))
    sessions = [fp32, *(make(bundle, road, threads, 1)[0] for road in roads)]
    found: list[list[Timing]] = [[] for _ in roads]
    for rows in batch_sizes(bundle):
        fp32_ms, *halves = median_ms(sessions, _sized(bundle, rows), seconds * len(roads))
        for timings, half_ms in zip(found, halves, strict=True):
            timings.append(Timing(rows, fp32_ms, half_ms))
    write_bytes_whole(result, msgspec.json.encode(found))


def measure(bundle: Bundle, road: Road, threads: int, make: Opener, seconds: float = SECONDS) -> Attempt:
    """A road's errors on the golden inputs and, where they are within the budget, its times beside FP32."""
    with doing(f"trying {road}"):
        session = make(bundle, road, threads, 1)[0]
        wanted, got = _golden_pairs(bundle, session)
        budget = bundle.manifest.budget
        comparison = compare(wanted, got, budget)
        sets = [compare([want], [have], budget) for want, have in zip(wanted, got, strict=True)]
        executed = getattr(session, "executed", ())
        found = {diff.output: diff.relative_l2 for diff in comparison.outputs}
        finite = {name: error if np.isfinite(error) else -1.0 for name, error in found.items()}  # JSON has no NaN
        why = why_refused(road, comparison, sets)
        if why and not can_come_down(comparison):
            return Attempt(road, why, finite, executed=executed)
        return Attempt(road, why, finite, timed(bundle, session, threads, seconds), executed, comparison.load)


def timed(bundle: Bundle, half: Session, threads: int, seconds: float) -> tuple[Timing, ...]:
    """Return the times of a half session beside FP32 at each batch size."""
    assert bundle.reference_path is not None
    fp32 = open_onnx(bundle.reference_path, CPU, SessionSettings(threads=threads))
    return time_sizes(batch_sizes(bundle), lambda rows: _timed(bundle, fp32, half, rows, seconds))


def why_refused(road: Road, pooled: Comparison, sets: Sequence[Comparison]) -> str:
    """Return why a way is not right here, by its answers to all golden inputs and to each set; empty where it is."""
    if not pooled:
        return "beyond the budget on the golden inputs: " + "; ".join(pooled.failures())
    return why_too_near(road, sets)


def can_come_down(comparison: Comparison) -> bool:
    """Return whether nothing but errors of at most `NEAR` times their limits speaks against a way."""
    finite = all(np.isfinite(diff.relative_l2) and not diff.non_finite for diff in comparison.outputs)
    return finite and 0 < comparison.load <= NEAR


def why_too_near(road: Road, sets: Sequence[Comparison]) -> str:
    """Return why half that no plan has chosen is too near its budget, by each golden set; empty where it is not.

    No plan has left it a margin for other inputs, so another set must be expected to be within the budget too.
    """
    if road.file != manifests.REFERENCE or road.islands:
        return ""
    near = []
    for diffs in zip(*(each.outputs for each in sets), strict=True):
        limit = diffs[0].limits.relative_l2
        expected = expected_error([diff.relative_l2 for diff in diffs])
        if limit is not None and expected > limit:
            near.append(
                f"`{diffs[0].output}`: another set of inputs may have a relative_l2 of {expected:.3g}, and the budget is {limit:g}"
            )
    return f"near the budget on the golden inputs: {'; '.join(near)}" if near else ""


def expected_error(errors: Sequence[float]) -> float:
    """Return what the error of one more set of inputs stays below in 95 of 100 cases, from those of some sets.

    The upper bound of a prediction interval, mean + t s sqrt(1 + 1/n), for normally distributed errors; a single set, which
    shows no scatter, counts `1 / UNPLANNED` times.
    """
    count = len(errors)
    if count == 1:
        return errors[0] / UNPLANNED
    if not all(math.isfinite(error) for error in errors):
        return math.inf
    spread = statistics.stdev(errors) * math.sqrt(1 + 1 / count)
    return statistics.fmean(errors) + STUDENT[min(count, len(STUDENT) + 1) - 2] * spread


def answers(bundle: Bundle, session: Session) -> Comparison:
    """A half session's answers to the golden inputs beside FP32's, judged by the bundle's budget."""
    return compare(*_golden_pairs(bundle, session), bundle.manifest.budget)


def _golden_pairs(bundle: Bundle, session: Session) -> tuple[list[Feeds], list[Feeds]]:
    """Return FP32's outputs for each golden set, and a half session's."""
    golden, varying = bundle.golden(), bundle.manifest.varying
    measured = [
        _numbers(session, session.run(check_feeds(session.inputs, feeds, cast_floats=True))) for feeds in golden.inputs
    ]
    return (
        [varying.comparable(each, live=True) for each in golden.outputs],
        [varying.comparable(each, live=True) for each in measured],
    )


def batch_sizes(bundle: Bundle) -> list[int]:
    """The batch sizes that are timed: one row and up to eight, or the golden inputs' own where rows are never joined."""
    batch = bundle.manifest.batch
    return sorted({1, min(batch.max_size, LARGEST)}) if batch.joins else [0]


def time_sizes(sizes: Sequence[int], timed: Callable[[int], Timing]) -> tuple[Timing, ...]:
    """Return the timing of each batch size, up to the first at which half is hopelessly slow: it must pay at every size."""
    found: list[Timing] = []
    for rows in sizes:
        found.append(timed(rows))
        if found[-1].speedup < HOPELESS:
            break
    return tuple(found)


def _timed(bundle: Bundle, fp32: Session, half: Session, rows: int, seconds: float) -> Timing:
    fp32_ms, half_ms = median_ms([fp32, half], _sized(bundle, rows), seconds)
    return Timing(rows, fp32_ms, half_ms)


def _sized(bundle: Bundle, rows: int) -> Feeds:
    """Return golden inputs of so many rows; of their own for 0."""
    feeds = next((each for each in bundle.golden().inputs if all(array.size for array in each.values())), {})
    return with_batch(feeds, bundle.manifest.inputs, rows) if rows else feeds


def _opener(name: str) -> Opener:
    module, _, function = name.partition(":")
    return cast(Opener, getattr(importlib.import_module(module), function))


def _numbers(session: Session, outputs: Feeds) -> Feeds:
    """Outputs as numbers: BF16, which comes as bits, as the float32 it stands for."""
    bits = {spec.name for spec in session.outputs if spec.dtype is DType.BF16}
    return {name: from_half(array, BF16) if name in bits else array for name, array in outputs.items()}
