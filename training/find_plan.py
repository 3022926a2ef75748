"""The measured precision plan of a training run: which modules compute in half, and why the others do not.

The gradient of one step is computed in FP32, and once for each module with that module alone in half. Rounding errors of
different modules are nearly independent, so that their squares add up:

    predicted error^2 = sum over half modules of |g_i - g|^2 / |g|^2

The plan keeps in FP32 what saves most error for the fewest FLOPs, until the prediction is within the budget; the step is
then measured with the whole plan, which must hold the budget as well. Casts between modules are not priced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from demi.errors import InputError
from demi.plan import Decision, Precision, PrecisionPlan, Reason, make_plan
from demi.training.module_precision import ROOT, applied, by_name, in_order, pin, pinned
from demi.training.rng import RandomState
from demi.training.state import Buffers, TrainState
from demi.training.task import Batch, call_loss

BUDGET = 0.02
"""Relative L2 error of all gradients: several times that of a healthy FP16 step, and twice that of a BF16 one."""
SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)
"""Loss scales of FP16, the first one whose gradients are finite is measured with."""

NOTHING_IN_HALF = -1.0
"""A target that no error is within."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and its errors: relative L2 of all gradients from FP32's."""

    plan: PrecisionPlan
    predicted: float
    measured: float
    all_half: float
    """The error with every module in half; infinite where that overflows."""
    budget: float
    half_flops: float
    """Share of the forward pass's FLOPs that is in half."""

    def __str__(self) -> str:
        single = len(self.plan.decisions) - self.plan.half_nodes
        return (
            f"{self.plan.half_nodes} of {len(self.plan.decisions)} modules in {self.plan.precision}, "
            f"{self.half_flops:.0%} of the FLOPs; {single} stay FP32. Error of the gradients: {self.measured:.2g}, "
            f"predicted {self.predicted:.2g}, budget {self.budget:.2g}; with every module in half {self.all_half:.2g}"
        )


@dataclass(frozen=True, slots=True)
class _Costs:
    """Each candidate's FLOPs of a forward pass, and the squared relative error that it causes in half."""

    flops: Mapping[str, int]
    squares: Mapping[str, float]


def find_plan(
    state: TrainState,
    batch: Batch,
    budget: float = BUDGET,
    keep_fp32: tuple[str, ...] = (),
    report: Callable[[float], None] | None = None,
) -> Planned:
    """Return the plan with the fewest FLOPs in FP32, found greedily, whose gradient error on a batch is within a budget.

    The run is left as it was. Costs a forward and backward pass for each module that multiplies. Raises InputError where
    the gradients in FP32 are not finite or all 0, and for names in `keep_fp32` that match no module.
    """
    measure = _Measure(state, batch)
    flops = own_flops(state, batch)
    pins = _pins_of(flops, pinned(state.plain_model, keep_fp32))
    squares = {}
    for number, name in enumerate(flops):
        squares[name] = 0.0 if name in pins else measure.square({name}, flops)
        if report is not None:
            report((number + 1) / (len(flops) + 2))
    costs = _Costs(flops, squares)
    target = budget**2
    half = _choose(costs, pins.keys(), target)
    while (measured := measure.square(half, flops)) > budget**2:
        predicted = sum(squares[name] for name in half)
        target = min(target, predicted) / 2 if predicted else NOTHING_IN_HALF
        half = _choose(costs, pins.keys(), target)
    predicted = sum(squares[name] for name in half)
    plan = _explain(state, costs, pins, half, budget)
    share = sum(flops[name] for name in half) / max(1, sum(flops.values()))
    everything = math.sqrt(measure.square(set(flops), flops))
    return Planned(plan, math.sqrt(predicted), math.sqrt(measured), everything, budget, share)


def own_flops(state: TrainState, batch: Batch) -> dict[str, int]:
    """Return the FLOPs of each module's own code in a forward pass, without those of modules below it; 0 is left out.

    Recurrent layers are there as well: PyTorch does not count theirs, and their weights stand for them.
    """
    model = state.plain_model
    random, buffers = RandomState.capture(), Buffers(model)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call_loss(state.task, model, batch)
    finally:
        buffers.restore()
        random.restore()
    root = type(model).__name__
    totals = {
        ROOT if name == root else name.removeprefix(f"{root}."): sum(each.values())
        for name, each in counter.get_flop_counts().items()
        if name != "Global"
    }
    modules = by_name(model)
    own = {name: total for name, total in totals.items() if name in modules}
    for name, total in totals.items():
        above = _nearest(name, totals)
        if above in own:
            own[above] -= total
    own |= {
        name: sum(p.numel() for p in module.parameters())
        for name, module in modules.items()
        if isinstance(module, nn.RNNBase)
    }
    return {name: own[name] for name in in_order([name for name, count in own.items() if count > 0], model)}


def _nearest(name: str, totals: Mapping[str, int]) -> str | None:
    """Return the innermost counted module above one."""
    if name == ROOT:
        return None
    while "." in name:
        name = name.rpartition(".")[0]
        if name in totals:
            return name
    return ROOT


def _pins_of(flops: Mapping[str, int], patterns: Mapping[str, str]) -> dict[str, str]:
    """Return the candidates that the user keeps in FP32: those named, and those below."""
    return {
        name: pattern
        for name in flops
        for above, pattern in patterns.items()
        if above in (name, ROOT) or name.startswith(f"{above}.")
    }


class _Measure:
    """The gradients of one step in FP32, and their distance from those with some modules in half."""

    def __init__(self, state: TrainState, batch: Batch) -> None:
        self._state, self._batch = state, batch
        self._exact = self._gradients(None, 1.0)
        self._size = _square(self._exact)
        if not (math.isfinite(self._size) and self._size > 0):
            what = "all 0" if self._size == 0 else "not finite"
            raise InputError(
                f"the gradients are {what} in FP32",
                where="--find-plan",
                hint="mend the task: there is nothing to measure",
            )

    def square(self, half: AbstractSet[str], candidates: Mapping[str, int]) -> float:
        """Return |g_half - g|^2 / |g|^2; infinite where FP16 overflows at every loss scale."""
        if not half:
            return 0.0
        modules = by_name(self._state.plain_model)
        plan = make_plan(
            self._state.precision.name,
            [
                Decision(
                    name,
                    type(modules[name]).__name__,
                    Precision.HALF if name in half else Precision.SINGLE,
                    Reason.SAFE,
                )
                for name in candidates
            ],
        )
        for scale in SCALES if self._state.precision.scaled else (1.0,):
            found = self._gradients(plan, scale)
            if math.isfinite(_square(found)):
                return _square([a - b for a, b in zip(found, self._exact, strict=True)]) / self._size
        return math.inf

    def _gradients(self, plan: PrecisionPlan | None, scale: float) -> list[Tensor]:
        """Return the unscaled gradients of the trained parameters; FP32 without a plan."""
        state, model = self._state, self._state.plain_model
        trained = [p for p in model.parameters() if p.requires_grad]
        random, buffers = RandomState.capture(), Buffers(model)
        half = state.precision.compute
        assert half is not None
        try:
            if plan is None:
                loss = call_loss(state.task, model, self._batch)
            else:
                with applied(model, plan, state.device, half), state.autocast():
                    loss = call_loss(state.task, model, self._batch)
            found = torch.autograd.grad(loss.float() * scale, trained, allow_unused=True)
        finally:
            buffers.restore()
            random.restore()
        return [gradient.float() / scale for gradient in found if gradient is not None]


def _square(tensors: list[Tensor]) -> float:
    return math.fsum(float(tensor.double().square().sum()) for tensor in tensors)


def _choose(costs: _Costs, pins: AbstractSet[str], target: float) -> set[str]:
    """Return the half modules: all, without those that save most error for their FLOPs, until the rest is within a target."""
    half = {name for name in costs.flops if name not in pins and math.isfinite(costs.squares[name])}
    total = sum(costs.squares[name] for name in half)
    out = []
    for name in sorted(half, key=lambda name: -costs.squares[name] / costs.flops[name]):
        if total <= target:
            break
        out.append(name)
        half.discard(name)
        total -= costs.squares[name]
    for name in sorted(out, key=lambda name: -costs.flops[name]):  # what fits again after a later one went
        if sum(costs.squares[each] for each in half) + costs.squares[name] <= target:
            half.add(name)
    return half


def _explain(
    state: TrainState, costs: _Costs, pins: Mapping[str, str], half: AbstractSet[str], budget: float
) -> PrecisionPlan:
    """Return the plan with a reason for every module."""
    modules = by_name(state.plain_model)
    total = sum(costs.squares[name] for name in half)
    decisions = []
    for name in costs.flops:
        kind, square = type(modules[name]).__name__, costs.squares[name]
        used = math.sqrt(square) / budget
        if name in pins:
            decisions.append(pin(name, modules[name], pins[name]))
        elif name in half:
            share = square / total if total else None
            decisions.append(Decision(name, kind, Precision.HALF, Reason.SAFE, "", used, share))
        elif math.isinf(square):
            evidence = "in half, the step is not finite at any loss scale"
            decisions.append(Decision(name, kind, Precision.SINGLE, Reason.OVERFLOW, evidence))
        else:
            evidence = f"half here moves the gradient by {math.sqrt(square):.2g}, {used:.2g} of the budget"
            decisions.append(Decision(name, kind, Precision.SINGLE, Reason.SENSITIVE, evidence, used))
    return make_plan(state.precision.name, decisions)
