"""`demi explain`: find where the half model departs from its FP32 reference, node by node."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison, TensorDiff, compare
from demi.accuracy.varying import STEADY, Varying
from demi.bundles.bundle import Bundle
from demi.calibration.emulation.tensor_errors import tensor_error
from demi.calibration.emulation.trials import DEFAULT_SCALE, wrong_answer
from demi.calibration.explain.culprit import (
    JUMP,
    ORDINARY,
    Culprit,
    by_name,
    describe,
    find_breaks,
    first_non_finite,
    strange_weights,
)
from demi.calibration.explain.failure import Failure, before, failure_of
from demi.calibration.explain.read_models import read_models
from demi.calibration.explain.trace import NodeTrace, Tracer, trace_nodes
from demi.calibration.explain.twins import twins_of
from demi.calibration.rescaling.bundled import certificate_of
from demi.calibration.rescaling.certificate import Powers
from demi.calibration.samples import fit_samples
from demi.errors import InferenceError
from demi.float16 import half_format
from demi.plan import PrecisionPlan
from demi.progress import Step, silent
from demi.tensors import Feeds


@dataclass(frozen=True, slots=True)
class Explanation:
    """The sources of a half model's error on a few sets of inputs."""

    origin: str
    """Description of the inputs."""
    lines: tuple[str, ...]
    """One sentence for each culprit and for the failure, in the order of execution; or one summary without either."""
    culprits: tuple[Culprit, ...]
    """The nodes that break the outputs, in the order of execution; empty when ordinary rounding errors add up."""
    failure: Failure | None
    """The node at which the half model fails; nodes behind it have no errors, and there are no outputs."""
    first_non_finite: str | None
    """The first node whose output is NaN or infinite where FP32 is finite."""
    comparison: Comparison
    nodes: tuple[NodeTrace, ...]
    """All nodes of the half model's main graph, in the order of execution."""

    @property
    def headline(self) -> str:
        """Return the first of its lines."""
        return self.lines[0]

    @property
    def fails_at(self) -> str | None:
        """Return the node at which the half model fails; None if it does not."""
        return self.failure.node if self.failure else None

    def most_relevant(self, top: int) -> list[NodeTrace]:
        """Return up to `top` nodes, in order: culprits, failure, first non-finite value, jumps, then the largest errors."""
        named = {self.fails_at, self.first_non_finite, *(culprit.node for culprit in self.culprits)}
        ranked = sorted(self.nodes, key=lambda node: (node.node not in named, not _jumps(node), -(node.adds or 0.0)))
        shown = (node for node in ranked[:top] if node.leaves or node.node == self.fails_at)
        return sorted(shown, key=lambda node: node.position)


def explain_bundle(bundle: Bundle, inputs: Sequence[Feeds] = (), origin: str = "", step: Step = silent) -> Explanation:
    """Trace the error of a bundle on `inputs`, or on its golden inputs; nodes carry the reasons of the plan.

    Raises BundleError for a bundle without a reference, and as `explain` does.
    """
    bundle.require_proof()
    with step("reading both models"):
        reference, mixed = read_models(bundle)
    sets, origin = (inputs, origin) if inputs else (bundle.golden().inputs, "the golden inputs")
    plan = bundle.plan() or PrecisionPlan(bundle.manifest.precision)
    certificate = certificate_of(bundle)
    exponents = certificate.tensors if certificate is not None else {}
    return explain(
        reference, mixed, sets, bundle.manifest.budget, plan, origin, step, bundle.manifest.varying, exponents
    )


def explain(
    reference: ir.Model,
    mixed: ir.Model,
    inputs: Sequence[Feeds],
    budget: Budget,
    plan: PrecisionPlan,
    origin: str = "",
    step: Step = silent,
    varying: Varying = STEADY,
    exponents: Mapping[str, Powers] | None = None,
) -> Explanation:
    """Run both models side by side, the half model under the emulator, and find where their results diverge.

    `exponents` says which tensors of the half model are 2^e times the reference's (`demi.calibration.rescaling`). A half
    model that fails on the inputs is explained up to the node that fails. Raises SampleError for inputs that do not fit,
    and InferenceError when the FP32 model fails on them.
    """
    part, failure = mixed, None
    while True:
        try:
            return _explain(reference, mixed, part, failure, inputs, budget, plan, origin, step, varying, exponents)
        except InferenceError as error:
            failure = failure_of(error, part)
            part = before(part, failure)


def _explain(
    reference: ir.Model,
    mixed: ir.Model,
    part: ir.Model,
    failure: Failure | None,
    inputs: Sequence[Feeds],
    budget: Budget,
    plan: PrecisionPlan,
    origin: str,
    step: Step,
    varying: Varying,
    exponents: Mapping[str, Powers] | None,
) -> Explanation:
    """Explain `part`, which is the half model, or the nodes before the one that fails."""
    fmt = half_format(plan.precision)
    with Tracer(twins_of(reference, part, exponents, plan.kernels), part, fmt, masks=bool(plan.masks)) as tracer:
        sets = fit_samples(inputs, tracer.inputs, origin).feeds
        with step("comparing tensor by tensor"):
            traced = trace_nodes(mixed, tracer.tensors(sets), tracer.input_errors(sets))
            nodes = tuple(_with_reason(node, plan) for node in traced)
        with step("finding where the answer breaks"):
            outputs = Outputs(tracer, sets, budget, len(part.graph), fails=failure is not None, varying=varying)
            ordinary = outputs.are_ordinary(ORDINARY * fmt.epsilon)
            breaks = [] if ordinary else find_breaks(len(part.graph), outputs.error_upto)
    halves, singles = by_name(mixed), by_name(reference)
    culprits = []
    for found in breaks:
        node = nodes[found.position - 1]
        weights = strange_weights(halves.get(node.node), singles.get(node.node), fmt)
        sentence = describe(found, nodes, weights, fmt)
        culprits.append(Culprit(node.node, node.op_type, found.before, found.after, sentence))
    non_finite = first_non_finite(nodes)
    lines = [*(culprit.sentence for culprit in culprits), *([failure.sentence] if failure else [])]
    return Explanation(
        origin=origin,
        lines=tuple(lines or [_nothing_stands_out(outputs.comparison, nodes)]),
        culprits=tuple(culprits),
        failure=failure,
        first_non_finite=non_finite.node if non_finite else None,
        comparison=outputs.comparison,
        nodes=nodes,
    )


class Outputs:
    """Errors of the outputs with a varying number of nodes in half. Owns FP32's outputs, the reference of all errors."""

    def __init__(
        self,
        tracer: Tracer,
        sets: Sequence[Feeds],
        budget: Budget,
        nodes: int,
        *,
        fails: bool,
        varying: Varying = STEADY,
    ) -> None:
        """Run FP32, and half with all `nodes`; if the half model `fails` behind them, its outputs count as all wrong."""
        self._tracer, self._sets, self._budget = tracer, sets, budget
        self._exact = [varying.comparable(tracer.outputs(feeds, 0)) for feeds in sets]
        self._half = (
            [{name: wrong_answer(array) for name, array in exact.items()} for exact in self._exact]
            if fails
            else [tracer.outputs(feeds, nodes) for feeds in sets]
        )
        self.comparison = compare(self._exact, self._half, budget)

    def are_ordinary(self, ordinary: float) -> bool:
        """Return whether the error of the outputs is within ordinary rounding."""
        return bool(self.comparison) and self._error(self._half, scaled=False) <= ordinary

    def error_upto(self, nodes: int) -> float:
        """Return the largest error of an output, as a share of its budget, with the first `nodes` nodes in half."""
        try:
            return self._error([self._tracer.outputs(feeds, nodes) for feeds in self._sets], scaled=True)
        except InferenceError:
            return float("inf")

    def _error(self, measured: Sequence[Feeds], *, scaled: bool) -> float:
        detected = {name for detector in self._budget.detectors for name in detector.outputs}
        errors = [
            tensor_error(want[name], got[name]).relative / (self._scale(name) if scaled else 1.0)
            for want, got in zip(self._exact, measured, strict=True)
            for name in want
            if name not in detected
        ]
        compared = compare(self._exact, measured, self._budget).outputs if detected else ()
        errors += [self._of_detector(diff, scaled) for diff in compared if diff.output in detected]
        return max(errors, default=0.0)

    def _of_detector(self, diff: TensorDiff, scaled: bool) -> float:
        """Return the larger of the error of matched boxes and the share of changed boxes."""
        allowed = diff.limits.boxes or 1.0
        of_boxes = (diff.boxes or 0.0) / (allowed if scaled else 1.0)
        return max(diff.relative_l2 / (self._scale(diff.output) if scaled else 1.0), of_boxes)

    def _scale(self, output: str) -> float:
        return self._budget.limits(output).relative_l2 or DEFAULT_SCALE


def _with_reason(node: NodeTrace, plan: PrecisionPlan) -> NodeTrace:
    decision = plan.decisions.get(node.node)
    return replace(node, reason=decision.reason.value, evidence=decision.evidence) if decision else node


def _jumps(node: NodeTrace) -> bool:
    return node.leaves is not None and node.leaves > JUMP * max(node.enters, node.adds or 0.0)


def _nothing_stands_out(comparison: Comparison, nodes: Sequence[NodeTrace]) -> str:
    worst = comparison.worst
    if not worst.relative_l2:
        return "nothing differs: all outputs are the same in both models"
    heaviest = max((node for node in nodes if math.isfinite(node.adds or 0.0)), key=lambda node: node.adds or 0.0)
    side = "within" if comparison else "beyond"
    return (
        f"no node stands out: rounding errors add up to {worst.relative_l2:.3g} at `{worst.output}`, {side} its budget; "
        f"`{heaviest.node}` ({heaviest.op_type}) adds most, {heaviest.adds or 0.0:.2g}"
    )
