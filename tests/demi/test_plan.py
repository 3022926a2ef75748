"""The precision plan: a decision for each node, in a file that people can read and edit."""

import msgspec
import pytest

from demi.errors import InputError
from demi.plan import (
    Decision,
    Precision,
    PrecisionPlan,
    Reason,
    make_plan,
    read_plan,
)

HALF, SINGLE = Precision.HALF, Precision.SINGLE
PLAN = make_plan(
    "fp16",
    [
        Decision("/a", "MatMul", HALF, Reason.SAFE),
        Decision("/b", "Exp", SINGLE, Reason.EXPONENTIAL, "infinite beyond 11.09"),
        Decision("/c", "Add", HALF, Reason.SAFE),
        Decision("/d", "Pow", SINGLE, Reason.EXPONENTIAL, "a square is infinite beyond 255.9"),
        Decision("/e", "If", SINGLE, Reason.CONTROL_FLOW),
    ],
)


def document(**fields):
    """The plan's JSON with other fields."""
    return msgspec.json.encode(msgspec.json.decode(PLAN.to_json()) | fields)


def test_round_trip(tmp_path):
    """A plan is read as it was written, in order."""
    (tmp_path / "plan.json").write_bytes(PLAN.to_json())
    read = read_plan(tmp_path / "plan.json")

    assert PLAN == read
    assert list(PLAN.decisions) == list(read.decisions)


def test_decision_by_name():
    """A node's decision is found by its name."""
    assert Reason.EXPONENTIAL is PLAN["/b"].reason
    with pytest.raises(KeyError):
        PLAN["/z"]


def test_unknown_node_is_single():
    """A node that the plan does not list is not half."""
    assert PLAN.is_half("/a")
    assert not PLAN.is_half("/b")
    assert not PLAN.is_half("/z")


def test_counts():
    """Counts are by precision and reason: half first, then the most frequent."""
    assert [("/a", 2), ("/b", 2), ("/e", 1)] == [(decision.node, count) for decision, count in PLAN.counts()]
    assert 2 == PLAN.half_nodes


def test_empty_plan():
    """An empty plan has no counts."""
    assert [] == PrecisionPlan("fp16").counts()
    assert 0 == PrecisionPlan("fp16").half_nodes


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (document(extra=1), "unknown field `extra`"),
        (document(schema=2), "schema 2"),
        (document(precision="fp8"), "`fp8`"),
        (document(decisions=[{"node": "/a"}]), "missing required field"),
        (document(decisions=[msgspec.to_builtins(PLAN["/a"]) | {"precision": "quarter"}]), "quarter"),
        (document(decisions=[msgspec.to_builtins(PLAN["/a"]) | {"reason": "because"}]), "because"),
        (document(decisions=[msgspec.to_builtins(PLAN["/a"])] * 2), "`/a` twice"),
    ],
)
def test_file_that_is_not_a_plan(tmp_path, data, text):
    """A badly edited plan raises an error with the field or node and the file."""
    (tmp_path / "plan.json").write_bytes(data)
    with pytest.raises(InputError, match=text) as caught:
        read_plan(tmp_path / "plan.json")
    assert str(tmp_path / "plan.json") == caught.value.where


def test_missing_file(tmp_path):
    """A missing plan raises an error."""
    with pytest.raises(InputError, match="cannot be read"):
        read_plan(tmp_path / "none.json")
