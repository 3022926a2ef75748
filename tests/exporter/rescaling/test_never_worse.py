"""A rescaling is never worse than none: it is dropped where the plan would cost more, or is over its budget."""

from __future__ import annotations

import importlib

import onnx_ir as ir
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.calibration.observe import observe
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.exporter import conversion
from demi.exporter.conversion import DEARER, OVER_BUDGET, brought_into_range, convert_prepared
from demi.exporter.passes.prepare import prepare
from demi.exporter.planning.find_plan import Planned, PlanSettings
from demi.exporter.planning.least_cost import least_cost
from demi.exporter.rescaling.rescale import AS_WRITTEN
from demi.plan import Decision, Precision, Reason, make_plan
from tests.hard.build import CORPUS, HardModel

importlib.import_module("tests.hard.overflow")


def samples_of(hard: HardModel) -> Samples:
    """The inputs for calibration."""
    return Samples(tuple(hard.calibration), "the test")


@pytest.mark.parametrize("name", ["variance_by_moments", "kurtosis_pooling"])
def test_a_model_whose_plan_would_cost_more_is_left_alone(name: str):
    """Fewer islands, and more bytes of new Muls and of casts around those that are left."""
    hard = CORPUS[name]()
    model = prepare(ir.from_proto(hard.model))

    ranged = brought_into_range(model, samples_of(hard), PlanSettings())

    assert ranged.model is model
    assert DEARER == ranged.rescaling.why_not


def test_a_plan_costs_less_where_a_rescaling_is_kept():
    """By the same costs that the planner solves for, casts included."""
    hard = CORPUS["growing_residual"]()
    model = prepare(ir.from_proto(hard.model))

    ranged = brought_into_range(model, samples_of(hard), PlanSettings())

    before, after = (
        least_cost(each, observe(each, samples_of(hard)), PlanSettings()) for each in (model, ranged.model)
    )
    assert after.seconds < before.seconds
    assert 8 == before.single
    assert 0 == after.single


def test_a_model_that_is_over_its_budget_when_rescaled_is_planned_as_it_was(monkeypatch: pytest.MonkeyPatch):
    """All in half is 5e-4 from FP32 when it is rescaled; as it was, with eight nodes in FP32, it is 2e-4."""
    hard = CORPUS["growing_residual"]()
    model = prepare(ir.from_proto(hard.model))
    with session_for(model, settings=AS_WRITTEN) as session:
        references = [session.run(feeds) for feeds in hard.calibration]
    find = conversion.plan_in_range

    def careless(ranged, samples, settings, step):
        if not ranged.rescaling:
            return find(ranged, samples, settings, step)
        nodes = [node for node in ranged.model.graph if node.op_type != "Constant"]
        decisions = [Decision(node.name or "", node.op_type, Precision.HALF, Reason.SAFE) for node in nodes]
        return Planned(make_plan("fp16", decisions))

    monkeypatch.setattr(conversion, "plan_in_range", careless)
    settings = PlanSettings(budget=Budget(Limits(relative_l2=3e-4)))

    done = convert_prepared(model, samples_of(hard), references, settings)

    assert done.comparison
    assert done.rescaling is not None
    assert OVER_BUDGET == done.rescaling.why_not
