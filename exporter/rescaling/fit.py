"""The fit of a model: which of its nodes would stay FP32 for their range, and what that costs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from demi.calibration.profile import RangeProfile
from demi.calibration.rescaling.certificate import Islands
from demi.exporter.planning.costs import DeviceCosts, Sizes, node_cost
from demi.exporter.planning.measured_facts import Measured, measured_facts
from demi.exporter.rescaling.equations import System, equations_of, value_at
from demi.exporter.rescaling.limits import Limits, limits_of, muls_of
from demi.exporter.rescaling.solve import LEAST_FACTOR, MOST_FACTOR, VANISHING
from demi.float16 import FP16


@dataclass(frozen=True, slots=True)
class Fit:
    """A prepared model with its observed ranges, and what half asks of it."""

    model: ir.Model
    profile: RangeProfile
    keep_fp32: Sequence[str]
    device: DeviceCosts
    facts: Measured
    system: System
    limits: Limits
    floors: bool

    @property
    def cost(self) -> float:
        """The cost of the nodes that stay FP32 for their range, and of those whose operands vanish."""
        return self.cost_with((0,) * self.system.count)

    @property
    def islands(self) -> list[ir.Node]:
        """The nodes that stay FP32 for their range."""
        return self.islands_with((0,) * self.system.count)

    def again(self, model: ir.Model, profile: RangeProfile) -> Fit:
        """Return the fit of a changed model."""
        return fit_of(model, profile, self.keep_fp32, self.device, floors=self.floors)

    def size_of(self, nodes: Iterable[ir.Node], muls: Collection[ir.Value] = ()) -> Islands:
        """Return the number of these nodes and of Muls of these tensors, with their bytes and FLOPs in FP32."""
        sizes = Sizes(self.profile)
        costs = [node_cost(node, self.facts.operands[node.name or ""], sizes, self.device) for node in nodes]
        multiplied = sum(sizes.elements(value) for value in muls)
        elements = sum(cost.elements for cost in costs) + 2 * multiplied
        return Islands(len(costs) + len(muls), 4 * elements, sum(cost.flops for cost in costs) + multiplied)

    def islands_with(self, exponents: Sequence[int]) -> list[ir.Node]:
        """Return the nodes that stay FP32 for their range with these exponents."""
        bounds = self.limits.bounds
        return list(dict.fromkeys(b.node for b in bounds if not b.least <= exponents[b.variable] <= b.most))

    def single_muls(self, exponents: Sequence[int]) -> list[ir.Value]:
        """Return the tensors that a Mul scales which itself stays FP32, one for each such Mul."""
        used = {edge: exponents[factor] for edge, (_, factor) in self.system.edges.items() if exponents[factor]}
        muls = muls_of(used, self.system, self.limits, self.facts, self.device)
        single = {
            (value_at(edge), exponent): None
            for edge, exponent in used.items()
            if not LEAST_FACTOR <= exponent <= MOST_FACTOR
            or any(exponents[end] > muls[edge].most for end in muls[edge].ends)
        }
        return [value for value, _ in single]

    def cost_with(self, exponents: Sequence[int]) -> float:
        """Return the cost of the islands, of what vanishes, and of the Muls with these exponents."""
        faint = {b.node for b in self.limits.ordinary if exponents[b.variable] < b.least}
        islands = self.islands_with(exponents)
        used = [edge for edge, (_, factor) in self.system.edges.items() if exponents[factor]]
        muls = muls_of(used, self.system, self.limits, self.facts, self.device)
        cost = sum(self.limits.costs[node] for node in islands)
        cost += VANISHING * sum(self.limits.costs[node] for node in faint - set(islands))
        return cost + sum(mul.cost for mul in muls.values())

    def misfits(self, exponents: Sequence[int]) -> list[str]:
        """Return the tensors that overflow with these exponents, or of which more than a few values are subnormal."""
        names = {variable: value.name or "" for value, variable in self.system.tensors.items() if value.producer()}
        over = (b.variable for b in self.limits.bounds if exponents[b.variable] > b.most)
        faint = (b.variable for b in self.limits.ordinary if exponents[b.variable] < b.least)
        subnormal = (variable for variable, least in self.limits.subnormal if exponents[variable] < least)
        return list(dict.fromkeys(names[v] for v in (*over, *faint, *subnormal) if v in names))

    def subnormal_with(self, exponents: Sequence[int]) -> int:
        """Return how many tensors have more than a few subnormal values in half with these exponents."""
        return sum(exponents[variable] < least for variable, least in self.limits.subnormal)


def fit_of(
    model: ir.Model, profile: RangeProfile, keep_fp32: Sequence[str], device: DeviceCosts, *, floors: bool = False
) -> Fit:
    """Return the fit of a prepared FP32 model in FP16, by its ranges; `floors` as in `limits_of`."""
    facts = measured_facts(model, FP16, profile, keep_fp32)
    system = equations_of(model, profile)
    limits = limits_of(system, facts, device, floors=floors)
    return Fit(model, profile, tuple(keep_fp32), device, facts, system, limits, floors)
