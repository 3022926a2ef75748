"""Rescaling a prepared model: seek exponents, carry them out, check them, and prove the bits - or leave the model alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from demi.calibration.observe import observe
from demi.calibration.profile import RangeProfile
from demi.calibration.rescaling.certificate import Certificate
from demi.calibration.rescaling.checker import check_rescaled
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.errors import DemiError
from demi.exporter.planning.costs import DeviceCosts
from demi.exporter.rescaling.apply import apply
from demi.exporter.rescaling.channels import composed, regions_of, scale_channels
from demi.exporter.rescaling.collector import collector_paused
from demi.exporter.rescaling.edges import edges_near, repairable
from demi.exporter.rescaling.fit import Fit, fit_of
from demi.exporter.rescaling.limits import ISLAND, muls_of
from demi.exporter.rescaling.ranges import rescaled_ranges
from demi.exporter.rescaling.reasons import why_they_fit
from demi.exporter.rescaling.solve import Solution, guess_islands, least_islands, solve
from demi.float16 import FP16, HalfFormat
from demi.runtime.onnxruntime.session import SessionSettings
from demi.tensors import Feeds

logger = logging.getLogger(__name__)

AS_WRITTEN = SessionSettings(faithful=True, as_written=True)
"""Both models run node by node: what is fused in one may not be in the other."""

WORTH = 0.1 * ISLAND
"""Least cost that a rescaling must spare: half of a node that vanishes."""

NOTHING_HELPS = "no powers of two bring more of it into half's range"

EDGES = 128
"""Most operands, around the islands that are left, that may get a Mul."""


@dataclass(frozen=True, slots=True)
class Rescaling:
    """A rescaled FP32 model with its certificate; or the model as it was, and why."""

    model: ir.Model
    certificate: Certificate | None = None
    fits: Mapping[str, str] = field(default_factory=dict)
    """Reason why each node that was an island fits now, in words, by its name."""
    profile: RangeProfile | None = None
    """The ranges of the model, where they are known."""
    why_not: str = ""
    """Reason why nothing was changed; empty where there was nothing to repair, or it was repaired."""
    islands: Set[str] = frozenset()
    """Names of the nodes that stay FP32 for their range."""

    def __bool__(self) -> bool:
        return self.certificate is not None


@collector_paused()
def rescale_prepared(
    model: ir.Model,
    feeds: Sequence[Feeds],
    profile: RangeProfile,
    *,
    keep_fp32: Sequence[str] = (),
    device: DeviceCosts | None = None,
    fmt: HalfFormat = FP16,
    floors: bool = False,
) -> Rescaling:
    """A copy of a prepared FP32 model in which fewer tensors leave half's range, and that gives the same bits.

    `profile` holds the ranges over `feeds`. The model itself is returned where nothing overflows or vanishes, where no
    powers of two help, and where the checker or the bits on `feeds` object. BF16 has FP32's range: nothing is done.
    With `floors`, the plan that follows keeps epsilons above zero that no sample feels, so that they may vanish here.
    """
    if fmt is not FP16:
        return Rescaling(model, profile=profile)
    as_is = fit_of(model.clone(), profile, keep_fp32, device or DeviceCosts(), floors=floors)
    if not as_is.cost:
        return Rescaling(model, profile=profile)
    left = frozenset(node.name or "" for node in as_is.islands)
    try:
        trials = _trials(model, as_is, feeds)
    except (DemiError, ValueError) as error:
        return Rescaling(model, profile=profile, why_not=str(error), islands=left)
    problems = [NOTHING_HELPS]
    for trial in trials:
        certificate = replace(trial.certificate, before=as_is.size_of(as_is.islands), samples=len(feeds))
        problems = _objections(model, trial.model, certificate, feeds)
        if not problems:
            reasons = why_they_fit(left - trial.islands, trial.model, certificate)
            return Rescaling(trial.model, certificate, reasons, trial.profile(), islands=trial.islands)
        logger.info("rescaling dropped: %s", "; ".join(problems))
    return Rescaling(model, profile=profile, why_not=problems[0], islands=left)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A rescaled model that is not proven yet."""

    model: ir.Model
    certificate: Certificate
    islands: Set[str]
    """The names of the nodes that stay FP32 for their range."""
    cost: float
    subnormal: int
    """Number of tensors with more than a few subnormal values in half."""
    observed: RangeProfile
    """Ranges, before the last step."""
    last: Certificate
    """The last step alone."""

    def profile(self) -> RangeProfile:
        """Return the ranges of the model."""
        return rescaled_ranges(self.observed, self.model, self.last)

    def is_better_than(self, other: _Trial) -> bool:
        """Return whether less stays FP32 or vanishes; or as much, with fewer subnormal values."""
        return (self.cost, self.subnormal) < (other.cost - WORTH, other.subnormal) or (
            self.cost <= other.cost and self.subnormal < other.subnormal
        )


def _trials(model: ir.Model, as_is: Fit, feeds: Sequence[Feeds]) -> list[_Trial]:
    """The model rescaled tensor by tensor; and before it, where that is better, with some channels scaled before that."""
    exponents = _program(as_is)
    seeds = as_is.misfits(exponents)
    whole = _scaled(as_is, exponents, Certificate())
    by_channel = _by_channel(model, as_is, seeds, feeds)
    trials = [by_channel, whole] if by_channel is not None and by_channel.is_better_than(whole) else [whole]
    return [trial for trial in trials if trial.certificate.constants]


def _program(fit: Fit) -> tuple[int, ...]:
    """The exponents of the variables; zeros where no others are worth a change."""
    found = best_exponents(fit, at_most=fit.cost - WORTH)
    return found.exponents if found is not None else (0,) * fit.system.count


def _scaled(fit: Fit, exponents: tuple[int, ...], so_far: Certificate) -> _Trial:
    """Carry exponents out, in the model of `fit`."""
    islands, cost, subnormal = fit.islands_with(exponents), fit.cost_with(exponents), fit.subnormal_with(exponents)
    muls = fit.single_muls(exponents)
    last = apply(fit.system, exponents) if any(exponents) else Certificate()
    certificate = replace(composed(so_far, last), after=fit.size_of(islands, muls))
    names = {node.name or "" for node in islands}
    return _Trial(fit.model, certificate, names, cost, subnormal, fit.profile, last)


def _by_channel(model: ir.Model, as_is: Fit, seeds: Sequence[str], feeds: Sequence[Feeds]) -> _Trial | None:
    """The regions of tensors that do not fit, scaled by channel, and then the rest by the program; None without regions."""
    if not regions_of(model, seeds):
        return None
    copy = model.clone()
    try:
        certificate = scale_channels(copy, seeds, feeds)
        if certificate is None:
            return None
        fit = as_is.again(copy, observe(copy, Samples(tuple(feeds), as_is.profile.origin)))
        return _scaled(fit, _program(fit) if fit.cost else (0,) * fit.system.count, certificate)
    except (DemiError, ValueError) as error:
        logger.info("not rescaled by channel: %s", error)
        return None


def _objections(model: ir.Model, changed: ir.Model, certificate: Certificate, feeds: Sequence[Feeds]) -> list[str]:
    """Return the checker's findings, and the outputs whose bits differ."""
    try:
        return check_rescaled(model, changed, certificate) or differing_bits(model, changed, feeds)
    except (DemiError, ValueError) as error:
        return [str(error)]


def best_exponents(fit: Fit, at_most: float) -> Solution | None:
    """The best exponents, with a few Muls where constants alone leave an island that one could help.

    None where no exponents cost less than `at_most`.
    """
    system, limits = fit.system, fit.limits
    first = guess_islands(system, limits)
    if first is not None:
        at_most = min(at_most, first.cost)
    edges = edges_near(repairable(first.nodes, system, limits), system, EDGES) if first is not None else []
    if edges or first is None or not first.is_best:
        muls = muls_of(edges, system, limits, fit.facts, fit.device)
        first = least_islands(system, limits, muls, at_most) or first
    return solve(system, limits, first) if first is not None and first.cost <= at_most else None


def differing_bits(original: ir.Model, changed: ir.Model, feeds: Sequence[Feeds]) -> list[str]:
    """One line for each output that is not the same to the last bit on every set of inputs, without optimizations."""
    with session_for(original, settings=AS_WRITTEN) as session:
        wanted = [session.run(each) for each in feeds]
    with session_for(changed, settings=AS_WRITTEN) as session:
        got = [session.run(each) for each in feeds]
    names = {
        name: None
        for want, have in zip(wanted, got, strict=True)
        for name in want
        if want[name].tobytes() != have[name].tobytes()
    }
    return [f"the rescaled model's `{name}` differs in FP32 on the samples" for name in names]
