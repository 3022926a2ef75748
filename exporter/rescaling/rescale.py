"""Rescaling a prepared model: seek exponents, carry them out, check them, and prove the bits - or leave the model alone."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from demi.calibration.profile import RangeProfile
from demi.calibration.rescaling.certificate import Certificate, Islands, ScaledConstant
from demi.calibration.rescaling.checker import check_rescaled
from demi.calibration.sessions import session_for
from demi.errors import DemiError
from demi.exporter.planning.costs import DeviceCosts, Sizes, node_cost
from demi.exporter.planning.measured_facts import Measured, measured_facts
from demi.exporter.rescaling.apply import apply
from demi.exporter.rescaling.classes import classes_of
from demi.exporter.rescaling.equations import Operand, System, equations_of, is_constant, is_tensor
from demi.exporter.rescaling.limits import ISLAND, Demands, fits_alone, limits_of
from demi.exporter.rescaling.ranges import rescaled_ranges
from demi.exporter.rescaling.rules import row_of
from demi.exporter.rescaling.solve import cost_as_is, solve
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
    """The ranges of the model, where they are known."""
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
    multiplied: list[Operand] = []
    system = equations_of(copy, profile)
    demands = Demands(facts, device)
    limits = limits_of(system, demands)
    cost, islands = cost_as_is(system, limits)
    if not cost:
        return Rescaling(model, profile=profile)
    found = solve(system, limits)
    left = repairable(found.islands, copy, demands) if found is not None else []
    if found is not None and left:
        multiplied = edges_near(left, system, EDGES)
        richer = equations_of(copy, profile, multiplied)
        limits = limits_of(richer, demands)
        better = solve(richer, limits)
        if better is not None and better.cost < found.cost:
            system, found = richer, better
    if found is None or found.cost > cost - WORTH or not any(found.exponents):
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
    ranges = rescaled_ranges(profile, copy, certificate)
    return Rescaling(copy, certificate, _why_they_fit(repaired, copy, certificate), ranges)


def repairable(islands: Sequence[ir.Node], model: ir.Model, demands: Demands) -> list[ir.Node]:
    """The islands that a Mul in front of them could help: the others ask for two things at once of one operand.

    An epsilon that would vanish where the variance that it is added to fits is such a contradiction.
    """
    if not islands:
        return []
    every = [operand for node in model.graph.all_nodes() for operand in _operands(node)]
    system = equations_of(model, demands.facts.profile, every)
    classes = classes_of(system.count, system.equations)
    return [node for node in islands if fits_alone(node, system, classes, demands)]


def edges_near(islands: Iterable[ir.Node], system: System, most: int) -> list[Operand]:
    """The operands that a Mul could scale with most effect, `most` at the most, nearest to these nodes first.

    Those of the islands, then, breadth first around them, what meets a number alone (an epsilon keeps its size while a
    variance grows), and where something pinned ends.
    """
    first, seen = list(islands), set(islands)
    found = {operand: None for node in first for operand in _operands(node)}
    queue = deque(first)
    while queue and len(found) < most:
        node = queue.popleft()
        for operand in _operands(node):
            if _meets_number(node) or _is_pinned(operand, system):
                found[operand] = None
        for other in _around(node):
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return list(found)[:most]


def _operands(node: ir.Node) -> list[Operand]:
    """The operands that are float32 tensors and no constants."""
    return [(node, i) for i, value in enumerate(node.inputs) if value and is_tensor(value) and not is_constant(value)]


def _meets_number(node: ir.Node) -> bool:
    return any(
        value is not None and value.const_value is not None and value.const_value.size == 1 for value in node.inputs
    )


def _is_pinned(operand: Operand, system: System) -> bool:
    """Return whether the tensor or its reader keeps its scale whatever the others do."""
    value = operand[0].inputs[operand[1]]
    assert value is not None
    maker = value.producer()
    return maker is None or row_of(maker) is None or row_of(operand[0]) is None


def _around(node: ir.Node) -> Iterable[ir.Node]:
    """The nodes that make what a node reads, and that read what it makes or read the same."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and is_tensor(value) and not is_constant(value):
            if (maker := value.producer()) is not None:
                yield maker
            yield from (use.node for use in value.uses())


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


def _why_they_fit(nodes: Iterable[ir.Node], changed: ir.Model, certificate: Certificate) -> dict[str, str]:
    """What made each node fit, in words: the scaled constants nearest to it, up from what it reads."""
    names = {node.name for node in nodes}
    scaled = {each.name: each for each in certificate.constants}
    return {
        node.name or "": f"fits since {_most_changed(near, scaled)}"
        for node in changed.graph.all_nodes()
        if node.name in names and (near := _nearest(node, scaled))
    }


FOLLOWS = frozenset({"Add", "Sub", "Sum", "Max", "Min", "Clip", "Where", "Concat", "Pad"})
"""Operators whose constants take the scale of what they meet, and give none."""


def _nearest(node: ir.Node, scaled: Mapping[str, ScaledConstant]) -> list[ir.Value]:
    """The scaled factors that the fewest nodes stand before, `node` among them."""
    seen, level = {node}, [node]
    while level:
        given = [value for each in level if each.op_type not in FOLLOWS for value in each.inputs if value is not None]
        if found := [value for value in dict.fromkeys(given) if value.name in scaled]:
            return found
        makers = (value.producer() for each in level for value in each.inputs if value is not None)
        level = [each for each in dict.fromkeys(makers) if each is not None and each not in seen]
        seen.update(level)
    return []


def _most_changed(constants: Sequence[ir.Value], scaled: Mapping[str, ScaledConstant]) -> str:
    """`weight` x 2^-9, of several the one that changed most; for a power of two, the tensor that it multiplies."""
    value = max(constants, key=lambda each: abs(scaled[each.name or ""].exponent))
    claimed = scaled[value.name or ""]
    times = None if claimed.source else value.consumers()[0].inputs[0]
    return f"`{times.name if times is not None else claimed.source}` x 2^{claimed.exponent}"
