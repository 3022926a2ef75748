"""The plan of a run: given, measured or taken from its folder, and applied to its model."""

from __future__ import annotations

from collections.abc import Callable

from demi.errors import InputError
from demi.plan import PrecisionPlan, read_plan
from demi.progress import Step
from demi.training import ranks
from demi.training.batches import Batches
from demi.training.find_plan import Planned, find_plan
from demi.training.module_precision import apply_plan, pinned, plan_of_pins
from demi.training.request import TrainRequest
from demi.training.state import TrainState
from demi.training.task import Batch

FILE = "plan.json"
MOST_LINES = 10
"""Modules in FP32 that are named one by one."""


def settle_plan(request: TrainRequest, state: TrainState, step: Step, say: Callable[[str], None]) -> None:
    """Apply the plan of a run to its model, and write it to its folder; `say` gets what was measured.

    A resumed run keeps the plan that it began with. Raises InputError for a plan of another model.
    """
    half, path = state.precision.compute, request.folder / FILE
    if half is None:
        return
    if state.counters.step:
        plan = read_plan(path) if path.is_file() else None
    elif request.find_plan:
        with step("measuring a precision for each module") as report:
            planned = find_plan(state, _first(request, state), request.plan_budget, request.keep_fp32, report)
        planned = ranks.gather(planned)[0]  # every rank has measured its own batch
        _say(planned, say)
        plan = planned.plan
    else:
        plan = request.plan or _pins(request, state)
    if plan is None:
        return
    apply_plan(state.plain_model, plan, state.device, half)
    if state.ranks.is_first and not state.counters.step:
        path.write_bytes(plan.to_json())


def _say(planned: Planned, say: Callable[[str], None]) -> None:
    say(f"plan: {planned} ({FILE})")
    single = [decision for decision in planned.plan.decisions.values() if not decision.is_half]
    for decision in single[:MOST_LINES]:
        say(f"  {decision.node} ({decision.op_type}) stays FP32: {decision.reason.value}: {decision.evidence}")
    if len(single) > MOST_LINES:
        say(f"  and {len(single) - MOST_LINES} more")


def _first(request: TrainRequest, state: TrainState) -> Batch:
    batches = Batches(request, state).take(1)
    if not batches:
        raise InputError("there is no batch to measure a plan on", where="TASK", hint="let batches yield one")
    return batches[0]


def _pins(request: TrainRequest, state: TrainState) -> PrecisionPlan | None:
    if not request.keep_fp32:
        return None
    return plan_of_pins(state.plain_model, state.precision.name, pinned(state.plain_model, request.keep_fp32))
