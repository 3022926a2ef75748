"""Tables about a plan in `demi export` and `demi calibrate`."""

from __future__ import annotations

from demi.cli.plan_tables import operators, plan_rows
from demi.exporter.planning.find_plan import Planned
from demi.plan import Decision, Precision, Reason, make_plan


def kept(name: str, op_type: str, reason: Reason, evidence: str) -> Decision:
    """A node that stays FP32."""
    return Decision(name, op_type, Precision.SINGLE, reason, evidence)


OLD = [kept(f"c{i}", "Conv", Reason.NO_HALF_TYPE, "Conv (opset 18) takes no bfloat16") for i in range(3)]
POOL = kept("p", "MaxPool", Reason.NO_HALF_TYPE, "MaxPool (opset 18) takes no bfloat16")


def test_operators_without_a_half_type_are_named():
    """A row for nodes whose operators have no half type says which operators they are, and why."""
    (row,) = plan_rows(Planned(make_plan("bf16", [*OLD, POOL])))

    assert ["nodes in fp32", "4", "no-half-type: 3 Conv, 1 MaxPool; Conv (opset 18) takes no bfloat16"] == row


def test_a_single_node_shows_its_evidence():
    """One node of a reason needs no tally."""
    (row,) = plan_rows(Planned(make_plan("bf16", [POOL])))

    assert "no-half-type: MaxPool (opset 18) takes no bfloat16" == row[2]


def test_other_reasons_are_left_short():
    """Nodes kept for what was measured are explained one by one below the table."""
    squares = [kept(f"s{i}", "Pow", Reason.OVERFLOW, "max 81,920") for i in range(2)]

    assert "overflow" == plan_rows(Planned(make_plan("fp16", squares)))[0][2]


def test_many_operators_are_counted():
    """Four are named, the others counted."""
    many = [kept(op, op, Reason.UNKNOWN_OP, "?") for op in "ABCDEF"]

    assert "1 A, 1 B, 1 C, 1 D and 2 other operators" == operators(make_plan("fp16", many), "unknown-operator")
