"""Protect decisions that rounding could change: keep single the nodes that lead to them, and no more than helps.

The nodes before a decision form stages, back from it: the arithmetic right before it, the last layers, the nodes before
those, and so on. The fewest stages are kept single for which the nearest other result is at least `MARGIN` times as far
away as half moves the scores, on all samples. Some decisions depend on the whole network, and no stage that leaves the
network in half is safe. For them the effect at the outputs counts:

- Limits on changes (of a detector's boxes, or of choices that may differ in a few elements) show at the output whether
  a close decision went wrong. The stages that help most are kept single, at most up to the last layers.
- A decision that changes in half while all outputs stay well within their limits is harmless, and so is a quantized
  value that is a step off if the next operator reads it as a number. Nothing is kept single for those.
- A decision that is safe on the samples, but not by far, is kept from most close calls of other inputs by the nodes right
  before it, if these are a small part of the model.
- For others the same stages are kept single if the outputs are right with them; else everything before the decision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from demi.calibration.emulation.trials import TrialRunner
from demi.exporter.operators import schemas
from demi.exporter.planning.decisions import decides_by, is_quantity, safety
from demi.plan import Reason

if TYPE_CHECKING:
    from demi.exporter.planning.repair_state import Graph, Repair

MARGIN = 4.0
"""A decision is safe if the next other result is this many times the error away."""

WIDE_MARGIN = 64.0
"""Margin up to which the nodes right before a decision are kept single if they cost little, as they do in a detector or
before a router: other inputs have closer decisions than a few samples."""

CHEAP = 0.05
"""Share of a model's layers that costs little."""

WELL_WITHIN = 0.5
"""Share of the budget up to which a changed decision is harmless."""

MOST_LAYERS = 0.5
"""Maximum share of a model's layers that a close decision may keep single."""

ALMOST_AS_SAFE = 0.67
"""A stage is chosen if it has this share of the safety of the safest one."""

LAYERS = frozenset(
    "Conv ConvTranspose ConvInteger FusedConv MatMul FusedMatMul Gemm Einsum LSTM GRU RNN Attention MultiHeadAttention".split()
)
"""Operators that count as layers of a network."""

LAYER_WEIGHTS = 1024
"""A product with a constant of fewer elements is not a layer but arithmetic, such as a detector's expected distance."""


@dataclass(frozen=True, slots=True)
class _Closeness:
    """Distance to the nearest other result, in units of half's error, and half's error on each deciding tensor."""

    times: float
    errors: Mapping[str, float]
    changed: bool
    """True if the result differs from FP32's on some sample."""


def protect_decisions(graph: Graph, runner: TrialRunner, candidates: AbstractSet[str], result: Repair) -> None:
    """Pin the nodes before decisions that rounding could change, as far back as it helps; each is examined once."""
    layers = {node for node in graph.nodes if is_layer(node)}
    for node in _at_risk(graph, runner, candidates - result.pinned.keys(), result.settled):
        names = [value.name or "" for value in decides_by(node)]
        half = candidates - result.pinned.keys()
        if not half:
            break
        counted = is_counted(graph, node, runner)
        closeness = _closeness(node, names, half, runner)
        if closeness.times >= WIDE_MARGIN:
            continue
        stages = [_switched(graph, stage, half) for stage in stages_before(graph, node, layers)]
        if counted:
            pinned = _most_helpful(node, names, stages[:2], half, runner)
            result.settled.add(node)
        elif closeness.times >= MARGIN:
            cheap = [stage for stage in stages[:2] if stage and _share(stage, layers) <= CHEAP]
            pinned = _most_helpful(node, names, cheap, half, runner) if cheap else set()
            result.settled.add(node)
        elif closeness.changed and runner.load(runner.compare(half)) <= WELL_WITHIN:
            continue
        else:
            few = [stage for stage in stages if _share(stage, layers) <= MOST_LAYERS]
            pinned = _safest(node, names, few, stages[-1], half, runner)
        evidence = describe_closeness(node, closeness.times, closeness.errors)
        for name in pinned:
            result.pinned[name] = (Reason.SELECTION, evidence)
            result.cones.add(name)


def _at_risk(graph: Graph, runner: TrialRunner, half: AbstractSet[str], settled: AbstractSet[ir.Node]) -> list[ir.Node]:
    """Return the unsettled nodes whose decisions half could change; one run examines all of them."""
    deciding = {node: decides_by(node) for node in graph.nodes if node not in settled and not is_quantity(node)}
    names = list(dict.fromkeys(value.name or "" for values in deciding.values() for value in values))
    found = (runner.tensor_errors(half, names) or {}) if names and half else {}
    moved = {name for name, error in found.items() if error.max_abs}
    return [node for node, values in deciding.items() if any(value.name in moved for value in values)]


def is_layer(node: ir.Node) -> bool:
    """Return True if a node is a layer of the network, rather than arithmetic around it."""
    if node.op_type not in LAYERS:
        return False
    constants = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
    return not constants or max(constants) >= LAYER_WEIGHTS


def stages_before(graph: Graph, node: ir.Node, layers: AbstractSet[ir.Node]) -> list[set[ir.Node]]:
    """Return growing sets of the nodes before a node, with it: up to the last layers, with them, and so on."""
    stages = [{node}]
    seen = {node}
    frontier = [node]
    while frontier:
        inside, beyond = list(frontier), set[ir.Node]()
        while inside:
            current = inside.pop()
            for maker in graph.makers(current):
                if maker in seen:
                    continue
                if (maker in layers) == (current in layers):
                    seen.add(maker)
                    inside.append(maker)
                else:
                    beyond.add(maker)
        stages[-1] = set(seen)
        frontier = [maker for maker in beyond if maker not in seen]
        seen.update(frontier)
        stages.append(set(seen))
    return stages[:-1]


def is_counted(graph: Graph, node: ir.Node, runner: TrialRunner) -> bool:
    """Return True if a node decides, and all outputs that depend on it have limits on changed boxes or choices."""
    if not decides_by(node):
        return False
    reached = graph.outputs_after(node)
    return bool(reached) and all(runner.counts_changes(name) for name in reached)


def _closeness(node: ir.Node, names: list[str], half: AbstractSet[str], runner: TrialRunner) -> _Closeness:
    answers = _choices(node)
    found = runner.tensor_errors(half, [*names, *answers]) or {}
    errors = {name: found[name].max_abs for name in names if name in found}
    if not any(errors.values()):
        return _Closeness(math.inf, errors, changed=False)
    changed = any(found[name].relative > 0 for name in answers if name in found)
    nearest = min((safety(node, sample, errors) for sample in runner.read_reference(names)), default=math.inf)
    return _Closeness(nearest, errors, changed)


def _choices(node: ir.Node) -> list[str]:
    """Return the outputs that show a decision: integers where there are some, since the values beside them are rounded."""
    made = [value for value in node.outputs if value.name]
    return [value.name or "" for value in [each for each in made if not schemas.is_float(each)] or made]


def _most_helpful(
    node: ir.Node, names: list[str], stages: list[set[str]], half: AbstractSet[str], runner: TrialRunner
) -> set[str]:
    """Return the smallest stage that is about as safe as the safest one."""
    reached = [_closeness(node, names, half - stage, runner).times for stage in stages]
    best = max(reached, default=0.0)
    return next(
        stage for stage, times in zip(stages, reached, strict=True) if times >= min(ALMOST_AS_SAFE * best, MARGIN)
    )


def _safest(
    node: ir.Node,
    names: list[str],
    few: list[set[str]],
    everything: set[str],
    half: AbstractSet[str],
    runner: TrialRunner,
) -> set[str]:
    """Return the smallest safe stage; else, if `everything` is most of the network, the stage that helps most."""
    tried = [few[i] for i in _doubling(len(few))]
    for stage in tried:
        if stage == everything or _closeness(node, names, half - stage, runner).times >= MARGIN:
            return stage
    if everything in few or not tried:
        return everything
    helpful = _most_helpful(node, names, tried[:2], half, runner)
    return helpful if runner.load(runner.compare(half - helpful)) <= WELL_WITHIN else everything


def _doubling(count: int) -> list[int]:
    """Return 0, 1, 2, 4, 8, ... and the last position."""
    steps = [0, *(2**k for k in range(32) if 2**k < count)]
    return sorted({*steps, count - 1}) if count else []


def _switched(graph: Graph, stage: Iterable[ir.Node], half: AbstractSet[str]) -> set[str]:
    return {name for node in stage for name in graph.switchable(node) if name in half}


def _share(stage: AbstractSet[str], layers: AbstractSet[ir.Node]) -> float:
    """Return the share of the layers that a stage holds."""
    return sum((node.name or "") in stage for node in layers) / len(layers) if layers else 0.0


def describe_closeness(node: ir.Node, nearest: float, errors: Mapping[str, float]) -> str:
    """Describe how close a decision is: the gap if one tensor decides, else the multiple of half's error."""
    if len(errors) == 1:
        error = next(iter(errors.values()))
        return f"`{node.name}` decides by a gap of {nearest * error:.2g}, half changes its scores by up to {error:.2g}"
    moves = " and ".join(f"`{name}` by up to {error:.2g}" for name, error in errors.items())
    return f"`{node.name}` decides by {nearest:.2g} times the error of half: {moves}"
