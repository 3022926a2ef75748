"""Differences between two plans."""

from demi.plan import Decision, Precision, Reason, make_plan
from demi.plan_changes import compare_plans

HALF, SINGLE = Precision.HALF, Precision.SINGLE


def plan(*decisions):
    """Return a plan of (node, precision, reason)."""
    return make_plan("fp16", [Decision(node, "Op", precision, reason) for node, precision, reason in decisions])


WAS = plan(("a", HALF, Reason.SAFE), ("b", SINGLE, Reason.OVERFLOW), ("c", SINGLE, Reason.REDUCTION))


def test_equal_plans():
    """Equal plans have no changes."""
    assert () == compare_plans(WAS, WAS)


def test_changed_precision():
    """A node that was single and is half has changed precision, and the text has both reasons."""
    (change,) = compare_plans(
        WAS, plan(("a", HALF, Reason.SAFE), ("b", HALF, Reason.SAFE), ("c", SINGLE, Reason.REDUCTION))
    )

    assert change.changed_precision
    assert "`b`: FP32 (overflow) -> half (safe)" == str(change)


def test_another_reason():
    """Another reason for the same precision is a change, but not of precision."""
    (change,) = compare_plans(
        WAS, plan(("a", HALF, Reason.SAFE), ("b", SINGLE, Reason.PINNED), ("c", SINGLE, Reason.REDUCTION))
    )

    assert not change.changed_precision


def test_added_and_removed_nodes():
    """Added and removed nodes are listed in graph order, removed ones last; neither has changed precision."""
    changes = compare_plans(WAS, plan(("new", HALF, Reason.SAFE), ("a", HALF, Reason.SAFE)))

    assert ["new", "b", "c"] == [change.node for change in changes]
    assert not any(change.changed_precision for change in changes)
    assert ["`new`: absent -> half (safe)", "`b`: FP32 (overflow) -> absent"] == [str(c) for c in changes[:2]]
