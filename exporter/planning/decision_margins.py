"""Protecting decisions that rounding could change: keep single what leads to them, and no more of it than helps.

What leads to a decision is taken in stages, back from it: the plain arithmetic right before it, the last layers, what is
before those, and so on. The fewest stages are kept single that bring the nearest other answer `MARGIN` times further away
than half moves it on all samples. Some decisions hang on the whole network, and no stage that leaves the network in half
is safe. For them it is the effect at the outputs that counts:

- Outputs that are judged by what changed (a detector's boxes, choices that may differ in a few elements) say themselves
  whether a close call went wrong. The stages that help most are kept single, the last layers at most.
- A decision that does turn in half while all outputs stay well within their limits harms nobody, and neither does a
  quantized value that is a step off where the next operator takes it for a number. Nothing is kept single for those.
- For others the same stages are kept single, when the outputs are right with them; else everything before the decision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from demi.calibration.emulation.trials import TrialRunner
from demi.exporter.planning.decisions import decides_by, is_quantity, safety
from demi.plan import Reason

if TYPE_CHECKING:
    from demi.exporter.planning.repair_state import Graph, Repair

MARGIN = 4.0
"""A decision is safe when the runner-up is this many times the error away."""

DETECTOR_MARGIN = 64.0
"""The same for a detector's: what decides over its boxes costs little, and other images have closer ones."""

WELL_WITHIN = 0.5
"""The share of the budget up to which a decision that turned is harmless."""

MOST_LAYERS = 0.5
"""The share of a model's layers that a close decision may keep single."""

NEARLY = 0.67
"""A stage does it when no later one is more than half again as safe."""

LAYERS = frozenset(
    "Conv ConvTranspose ConvInteger FusedConv MatMul FusedMatMul Gemm Einsum LSTM GRU RNN Attention MultiHeadAttention".split()
)
"""Operators that do a network's work."""

LAYER_WEIGHTS = 1024
"""A product with a constant of fewer elements is arithmetic, no layer: the mean of a distribution over distances."""


@dataclass(frozen=True, slots=True)
class _Closeness:
    """How near another answer is, in units of what half changes, and by how much it changes each deciding tensor."""

    times: float
    errors: Mapping[str, float]
    turned: bool
    """Whether the answer is another one on some sample."""


def protect_decisions(graph: Graph, runner: TrialRunner, candidates: AbstractSet[str], result: Repair) -> None:
    """Pin what leads to decisions that rounding could change, as far back as it helps; each is looked at once."""
    layers = {node for node in graph.nodes if is_layer(node)}
    for node in _moved(graph, runner, candidates - result.pinned.keys(), result.settled):
        names = [value.name or "" for value in decides_by(node)]
        half = candidates - result.pinned.keys()
        if not half:
            break
        counted = is_counted(graph, node, runner)
        closeness = _closeness(node, names, half, runner)
        if closeness.times >= (DETECTOR_MARGIN if counted else MARGIN):
            continue
        stages = [_switched(graph, stage, half) for stage in stages_before(graph, node, layers)]
        if counted:
            pinned = _most_helpful(node, names, stages[:2], half, runner)
            result.settled.add(node)
        elif closeness.turned and runner.load(runner.compare(half)) <= WELL_WITHIN:
            continue
        else:
            few = [stage for stage in stages if _share(stage, layers) <= MOST_LAYERS]
            pinned = _safest(node, names, few, stages[-1], half, runner)
        evidence = close_decision(node, closeness.times, closeness.errors)
        for name in pinned:
            result.pinned[name] = (Reason.SELECTION, evidence)
            result.cones.add(name)


def _moved(graph: Graph, runner: TrialRunner, half: AbstractSet[str], settled: AbstractSet[ir.Node]) -> list[ir.Node]:
    """The nodes whose decisions half could change, but for those that are settled: all are looked at in one run."""
    deciding = {node: decides_by(node) for node in graph.nodes if node not in settled and not is_quantity(node)}
    names = list(dict.fromkeys(value.name or "" for values in deciding.values() for value in values))
    found = (runner.tensor_errors(half, names) or {}) if names and half else {}
    moved = {name for name, error in found.items() if error.max_abs}
    return [node for node, values in deciding.items() if any(value.name in moved for value in values)]


def is_layer(node: ir.Node) -> bool:
    """Whether a node does a share of the network's work, rather than arithmetic around it."""
    if node.op_type not in LAYERS:
        return False
    constants = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
    return not constants or max(constants) >= LAYER_WEIGHTS


def stages_before(graph: Graph, node: ir.Node, layers: AbstractSet[ir.Node]) -> list[set[ir.Node]]:
    """What leads to a node, itself included, in growing sets: up to the last layers, with them, up to those before them."""
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
    """Whether a node decides, and every output that follows from it is judged by how many boxes or choices change."""
    if not decides_by(node):
        return False
    reached = graph.outputs_after(node)
    return bool(reached) and all(runner.counts_changes(name) for name in reached)


def _closeness(node: ir.Node, names: list[str], half: AbstractSet[str], runner: TrialRunner) -> _Closeness:
    answers = [value.name or "" for value in node.outputs if value.name]
    found = runner.tensor_errors(half, [*names, *answers]) or {}
    errors = {name: found[name].max_abs for name in names if name in found}
    if not any(errors.values()):
        return _Closeness(math.inf, errors, turned=False)
    turned = any(found[name].relative > 0 for name in answers if name in found)
    nearest = min((safety(node, sample, errors) for sample in runner.read_reference(names)), default=math.inf)
    return _Closeness(nearest, errors, turned)


def _most_helpful(
    node: ir.Node, names: list[str], stages: list[set[str]], half: AbstractSet[str], runner: TrialRunner
) -> set[str]:
    """The smallest stage that is about as safe as any of them."""
    reached = [_closeness(node, names, half - stage, runner).times for stage in stages]
    best = max(reached, default=0.0)
    return next(stage for stage, times in zip(stages, reached, strict=True) if times >= min(NEARLY * best, MARGIN))


def _safest(
    node: ir.Node,
    names: list[str],
    few: list[set[str]],
    everything: set[str],
    half: AbstractSet[str],
    runner: TrialRunner,
) -> set[str]:
    """The smallest stage that is safe; else, where everything is most of the network, the one that helps most."""
    tried = [few[i] for i in _growing(len(few))]
    for stage in tried:
        if stage == everything or _closeness(node, names, half - stage, runner).times >= MARGIN:
            return stage
    if everything in few or not tried:
        return everything
    helpful = _most_helpful(node, names, tried[:2], half, runner)
    return helpful if runner.load(runner.compare(half - helpful)) <= WELL_WITHIN else everything


def _growing(count: int) -> list[int]:
    """0, 1, 2, 4, 8, ... and the last."""
    steps = [0, *(2**k for k in range(32) if 2**k < count)]
    return sorted({*steps, count - 1}) if count else []


def _switched(graph: Graph, stage: Iterable[ir.Node], half: AbstractSet[str]) -> set[str]:
    return {name for node in stage for name in graph.switchable(node) if name in half}


def _share(stage: AbstractSet[str], layers: AbstractSet[ir.Node]) -> float:
    """Which share of the layers a stage holds."""
    return sum((node.name or "") in stage for node in layers) / len(layers) if layers else 0.0


def close_decision(node: ir.Node, nearest: float, errors: Mapping[str, float]) -> str:
    """What a decision hangs by, in words: a gap where one tensor decides, else how often half's error goes into it."""
    if len(errors) == 1:
        error = next(iter(errors.values()))
        return f"`{node.name}` decides by a gap of {nearest * error:.2g}, half changes its scores by up to {error:.2g}"
    moves = " and ".join(f"`{name}` by up to {error:.2g}" for name, error in errors.items())
    return f"`{node.name}` decides by {nearest:.2g} times what half changes: {moves}"
