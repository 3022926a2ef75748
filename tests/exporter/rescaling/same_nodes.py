"""A fair comparison: the error of a model with and without the rescaling where the same nodes are half."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.accuracy.compare import compare
from demi.calibration.observe import observe
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.exporter.conversion import emulate
from demi.exporter.passes.lower import apply_plan
from demi.exporter.passes.prepare import prepare
from demi.exporter.planning.find_plan import PlanSettings, find_plan
from demi.exporter.planning.measured_facts import measured_facts
from demi.exporter.rescaling.rescale import AS_WRITTEN, Rescaling, rescale_prepared
from demi.float16 import FP16
from demi.plan import Decision, Precision, PrecisionPlan, Reason, make_plan
from tests.hard.build import HardModel


def errors_with_the_same_nodes(hard: HardModel) -> tuple[float, float] | None:
    """Return the errors without and with the rescaling, both with the plan of the model as it is; None without a rescaling.

    Relative L2 under the emulator, on inputs that neither the plan nor the rescaling has seen.
    """
    model = prepare(ir.from_proto(hard.model))
    samples = Samples(tuple(hard.calibration), "calibration")
    profile = observe(model, samples)
    found = rescale_prepared(model, samples.feeds, profile, floors=True)
    if not found:
        return None
    plan = find_plan(model, samples, PlanSettings(), profile=profile).plan
    return _error(model, plan, hard), _error(found.model, moved(plan, found), hard)


def moved(plan: PrecisionPlan, found: Rescaling) -> PrecisionPlan:
    """Return a plan for the rescaled model: a new Mul is half where everything that reads it is half."""
    assert found.profile is not None
    decisions = dict(plan.decisions)
    for node in reversed(list(found.model.graph.all_nodes())):
        if node.name not in decisions and node.op_type == "Mul":
            uses = node.outputs[0].uses()
            half = bool(uses) and all(decisions[use.node.name or ""].is_half for use in uses)
            precision = Precision.HALF if half else Precision.SINGLE
            decisions[node.name or ""] = Decision(node.name or "", "Mul", precision, Reason.SAFE)
    epsilons = measured_facts(found.model, FP16, found.profile).epsilon_names
    return replace(make_plan(plan.precision, decisions.values(), plan.masks, plan.kernels), epsilons=epsilons)


def _error(model: ir.Model, plan: PrecisionPlan, hard: HardModel) -> float:
    with session_for(ir.from_proto(hard.model), settings=AS_WRITTEN) as session:
        references = [session.run(feeds) for feeds in hard.evaluation]
    measured = emulate(apply_plan(model, plan).model, Samples(tuple(hard.evaluation), "unseen"))
    return compare(references, measured, Budget()).worst.relative_l2
