"""Rescaling a prepared model: seek exponents, carry them out, check them, and prove the bits - or leave the model alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from demi.calibration.profile import RangeProfile
from demi.calibration.rescaling.certificate import Certificate, Islands
from demi.calibration.rescaling.checker import check_rescaled
from demi.calibration.sessions import session_for
from demi.errors import DemiError
from demi.exporter.planning.costs import DeviceCosts, Sizes, node_cost
from demi.exporter.planning.measured_facts import Measured, measured_facts
from demi.exporter.rescaling.apply import apply
from demi.exporter.rescaling.edges import edges_near, repairable
from demi.exporter.rescaling.equations import System, equations_of
from demi.exporter.rescaling.limits import ISLAND, Limits, limits_of, muls_of
from demi.exporter.rescaling.reasons import why_they_fit
from demi.exporter.rescaling.solve import Solution, cost_as_is, guess_islands, least_islands, solve
from demi.float16 import FP16, HalfFormat
from demi.runtime.onnxruntime.session import SessionSettings
from demi.tensors import Feeds

logger = logging.getLogger(__name__)

AS_WRITTEN = SessionSettings(faithful=True, as_written=True)
"""Both models run node by node: what is fused in one may not be in the other."""

WORTH = 0.1 * ISLAND
"""What a rescaling must spare: half of a node that vanishes."""

EDGES = 128
"""How many operands around the islands that are left may get a Mul."""


@dataclass(frozen=True, slots=True)
class Rescaling:
    """A rescaled FP32 model with its certificate; or the model as it was, and why."""

    model: ir.Model
    certificate: Certificate | None = None
    fits: Mapping[str, str] = field(default_factory=dict)
    """Why each node that was an island fits now, in words, by its name."""
    profile: RangeProfile | None = None
    """The ranges of the model, where they are known; those of a rescaled one are to be observed."""
    why_not: str = ""
    """Why nothing was changed; empty where there was nothing to repair, or it was repaired."""

    def __bool__(self) -> bool:
        return self.certificate is not None


def rescale_prepared(
    model: ir.Model,
    feeds: Sequence[Feeds],
    profile: RangeProfile,
    *,
    keep_fp32: Sequence[str] = (),
    device: DeviceCosts | None = None,
    fmt: HalfFormat = FP16,
) -> Rescaling:
    """A copy of a prepared FP32 model in which fewer tensors leave half's range, and that gives the same bits.

    `profile` holds the ranges over `feeds`. The model itself is returned where nothing overflows or vanishes, where no
    powers of two help, and where the checker or the bits on `feeds` object. BF16 has FP32's range: nothing is done.
    """
    if fmt is not FP16:
        return Rescaling(model, profile=profile)
    copy = model.clone()
    facts = measured_facts(copy, fmt, profile, keep_fp32)
    device = device or DeviceCosts()
    system = equations_of(copy, profile)
    limits = limits_of(system, facts, device)
    cost, islands = cost_as_is(limits)
    if not cost:
        return Rescaling(model, profile=profile)
    found = best_exponents(system, limits, facts, device, at_most=cost - WORTH)
    if found is None or not any(found.exponents):
        return Rescaling(model, profile=profile, why_not="no powers of two bring more of it into half's range")
    before, after = (_measure(nodes, facts, device) for nodes in (islands, found.islands))
    try:
        certificate = replace(apply(system, found.exponents), before=before, after=after, samples=len(feeds))
        problems = check_rescaled(model, copy, certificate) or differing_bits(model, copy, feeds)
    except (DemiError, ValueError) as error:
        problems = [str(error)]
    if problems:
        logger.info("rescaling dropped: %s", "; ".join(problems))
        return Rescaling(model, profile=profile, why_not=problems[0])
    repaired = set(islands) - set(found.islands)
    return Rescaling(copy, certificate, why_they_fit(repaired, copy, certificate))


def best_exponents(
    system: System, limits: Limits, facts: Measured, device: DeviceCosts, at_most: float
) -> Solution | None:
    """The best exponents, with a few Muls where constants alone leave an island that one could help.

    None where no exponents cost less than `at_most`.
    """
    first = guess_islands(system, limits)
    if first is not None:
        at_most = min(at_most, first.cost)
    edges = edges_near(repairable(first.nodes, system, limits), system, EDGES) if first is not None else []
    if edges or first is None or not first.is_best:
        muls = muls_of(edges, system, limits, facts, device)
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


def _measure(islands: Iterable[ir.Node], facts: Measured, device: DeviceCosts) -> Islands:
    sizes = Sizes(facts.profile)
    costs = [node_cost(node, facts.operands[node.name or ""], sizes, device) for node in islands]
    return Islands(len(costs), 4 * sum(cost.elements for cost in costs), sum(cost.flops for cost in costs))
