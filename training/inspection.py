"""Inspection of a step in half: its gradients beside those of FP32, losses to the loss scale, and losses to rounding.

An inspected step is run a second time in FP32 with the same batches and random numbers; it changes nothing in the run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle

from demi.training.rng import RandomState
from demi.training.state import Buffers, TrainState
from demi.training.task import Batch, call_loss, tensors_of

FILE = "inspections.jsonl"
TINY = 2.0**-25
"""Half of FP16's smallest number: what is no larger rounds to 0."""
LARGEST = 65504.0
SAMPLED = 1 << 16
"""Elements of a gradient whose exponents are counted, at the most: evenly spaced, and each counts for those between."""
LOWEST, HIGHEST = -60, 40
"""Exponents of the histogram; what lies outside is counted at its ends."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The gradients of one module's own parameters, or of its outputs."""

    name: str
    error: float | None
    """Relative L2 distance of the half gradient from FP32's; None for outputs."""
    cosine: float | None
    largest: float
    """The largest magnitude in FP32, unscaled."""
    lost: float
    """Share of what is not 0 that the loss scale of the step leaves below FP16's smallest number."""
    lost_at_best: float
    """The same at the recommended scale."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """One step in half beside the same step in FP32."""

    loss: float
    fp32_loss: float
    error: float
    """Relative L2 distance of all gradients from FP32's."""
    cosine: float
    scale: float
    recommended_scale: float
    """2**(14 - ceil(log2 max)): the largest gradient is in range, with a reserve of a factor of 4 to 8."""
    headroom: float
    """Bits between the largest gradient at the present scale and FP16's largest number."""
    lost: float
    """Share of the gradients that flow between modules which FP16 rounds to 0 at the present scale."""
    layers: tuple[Layer, ...]
    histogram: dict[int, int]
    """Counts of unscaled gradients between modules by exponent: 2**e <= |g| < 2**(e + 1)."""
    unchanged: float = math.nan
    """Share of weights with a gradient that the update left as they were."""
    descent_quality: float | None = None
    """Share of the intended update that arrived, with Kahan summation: <intended, arrived> / |intended|^2 (2405.03637)."""

    @property
    def numbers(self) -> dict[str, float | None]:
        """The summary for the log."""
        return {
            "precision/shadow_error": self.error,
            "precision/shadow_cosine": self.cosine,
            "precision/shadow_loss": self.fp32_loss,
            "precision/underflow_share": self.lost,
            "precision/recommended_scale": self.recommended_scale,
            "precision/updates_lost": self.unchanged,
            "precision/descent_quality": self.descent_quality,
        }


def inspect_gradients(
    state: TrainState, batches: Sequence[Batch], before: RandomState, buffers: Buffers, loss: float, scale: float
) -> Inspection:
    """Compare a step's gradients, unscaled and not clipped yet, with those of FP32 and put everything back.

    With DDP all ranks call this: the gradients of FP32 are averaged as those in half were.
    """
    after, trained = RandomState.capture(), Buffers(state.plain_model)
    half = {name: p.grad.detach().float() for name, p in state.plain_model.named_parameters() if p.grad is not None}
    try:
        before.restore()
        buffers.restore()
        fp32_loss, exact, flows = _fp32_step(state, batches, list(half))
    finally:
        trained.restore()
        after.restore()
    # Gradients of weights are computed in half as well, and are often larger: sums over the batch.
    largest = max(
        [flow.largest for flow in flows.values()] + [float(g.abs().max()) for g in exact.values()], default=0.0
    )
    best = 2.0 ** (14 - math.ceil(math.log2(largest))) if largest > 0 else 1.0
    layers = [_parameters(name, half, exact, scale, best) for name in _modules(half)]
    layers += [flow.layer(name, scale, best) for name, flow in flows.items()]
    all_half, all_exact = (torch.cat([side[name].flatten() for name in half]) for side in (half, exact))
    counts = sum((flow.counts for flow in flows.values()), torch.zeros(HIGHEST - LOWEST + 1, dtype=torch.int64))
    total = sum(flow.total for flow in flows.values())
    gone = sum(flow.below(scale) for flow in flows.values())
    return Inspection(
        loss,
        fp32_loss,
        _error(all_half, all_exact),
        _cosine(all_half, all_exact),
        scale,
        best,
        math.log2(LARGEST / (largest * scale)) if largest > 0 else math.inf,
        gone / total if total else 0.0,
        tuple(layers),
        {LOWEST + index: count for index, count in enumerate(counts.tolist()) if count},
    )


class Weights:
    """The trained weights before an update, to see what the update did to them."""

    def __init__(self, state: TrainState) -> None:
        self._state = state
        parameters = [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._before = [(p, p.detach().clone(), self._carried(p), p.grad != 0) for p in parameters]

    def _carried(self, parameter: Tensor) -> Tensor | None:
        """Return what Kahan summation carries for a weight into its next update."""
        found = self._state.optimizer.state.get(parameter, {}).get("kahan_comp")
        return found.detach().clone() if isinstance(found, Tensor) else None

    def compare(self) -> tuple[float, float | None]:
        """Return the share of weights with a gradient that did not change, and the descent quality where it is known."""
        moved = total = 0
        intended_arrived = intended_squared = 0.0
        for parameter, before, carried, has_gradient in self._before:
            moved += int(((parameter.detach() != before) & has_gradient).sum())
            total += int(has_gradient.sum())
            carries = self._carried(parameter)
            if carries is None:
                continue
            arrived = parameter.detach().double() - before.double()
            kept = carries.double() - (carried.double() if carried is not None else 0.0)
            intended = arrived + kept
            intended_arrived += float((intended * arrived).sum())
            intended_squared += float((intended * intended).sum())
        quality = intended_arrived / intended_squared if intended_squared else None
        return (1 - moved / total if total else math.nan), quality


@dataclass(slots=True)
class _Flow:
    """The gradients that came back to a module's outputs, as counts of exponents."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(HIGHEST - LOWEST + 1, dtype=torch.int64))
    largest: float = 0.0

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def add(self, gradient: Tensor) -> None:
        size = torch.nan_to_num(gradient.detach().abs().flatten(), 0.0, 0.0, 0.0)
        if not size.numel():
            return
        self.largest = max(self.largest, float(size.max()))
        each = -(-size.numel() // SAMPLED)
        size = size[::each]
        exponent = torch.frexp(size[size > 0]).exponent.long() - 1  # frexp's mantissa lies in [0.5, 1)
        found = torch.bincount(exponent.clamp(LOWEST, HIGHEST).cpu() - LOWEST, minlength=len(self.counts))
        self.counts += each * found

    def below(self, scale: float) -> int:
        """Return how many round to 0 at a scale, to the precision of whole exponents."""
        edge = math.floor(math.log2(TINY / scale))
        return int(self.counts[: max(0, min(len(self.counts), edge - LOWEST))].sum())

    def layer(self, name: str, scale: float, best: float) -> Layer:
        total = self.total or 1
        return Layer(f"{name} (output)", None, None, self.largest, self.below(scale) / total, self.below(best) / total)


def _fp32_step(
    state: TrainState, batches: Sequence[Batch], names: Sequence[str]
) -> tuple[float, dict[str, Tensor], dict[str, _Flow]]:
    """Return loss, gradients by parameter, and gradients between modules, of the step without any half."""
    model = state.plain_model
    if state.precision.weights is not torch.float32:
        model = copy.deepcopy(model).float()
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameters[name], dtype=torch.float32) for name in names}
    flows: dict[str, _Flow] = {}
    handles = [_follow(name, module, flows) for name, module in model.named_modules() if not _has_children(module)]
    total = 0.0
    try:
        for batch in batches:
            loss = call_loss(state.task, model, batch).float() / len(batches)
            found = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
            for name, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient
            total += float(loss.detach())
    finally:
        for handle in handles:
            handle.remove()
    if state.ranks.world > 1:
        for gradient in sums.values():
            distributed.all_reduce(gradient)
            gradient /= state.ranks.world
    return total, sums, flows


def _has_children(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _follow(name: str, module: nn.Module, flows: dict[str, _Flow]) -> RemovableHandle:
    def after(_: nn.Module, __: object, output: object) -> None:
        flow = flows.setdefault(name or "the model", _Flow())
        for _where, tensor in tensors_of(output):
            if tensor.requires_grad:
                tensor.register_hook(flow.add)  # type: ignore[no-untyped-call]

    return module.register_forward_hook(after)


def _modules(gradients: dict[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in gradients))


def _parameters(name: str, half: dict[str, Tensor], exact: dict[str, Tensor], scale: float, best: float) -> Layer:
    own = [each for each in half if each.rpartition(".")[0] == name]
    ours, theirs = (torch.cat([side[each].flatten() for each in own]) for side in (half, exact))
    flow = _Flow()
    flow.add(theirs)
    seen = flow.layer(name, scale, best)
    title = name or "the model"
    return Layer(title, _error(ours, theirs), _cosine(ours, theirs), seen.largest, seen.lost, seen.lost_at_best)


def _error(half: Tensor, exact: Tensor) -> float:
    size = float(exact.norm())
    return float((half - exact).norm()) / size if size else 0.0


def _cosine(half: Tensor, exact: Tensor) -> float:
    size = float(half.norm()) * float(exact.norm())
    return float((half * exact).sum()) / size if size else 1.0
