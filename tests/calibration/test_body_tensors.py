"""Ranges inside the bodies of If, Loop and Scan."""

from __future__ import annotations

import numpy as np
import pytest

from demi.calibration import body_tensors
from demi.calibration.body_tensors import observe_bodies
from demi.calibration.samples import Samples
from tests.models import prepared

LOOP = """
loop (float[2] x) => (float[2] y)
<int64 turns = {3}, bool go = {1}>
{
  [sum] last = Loop(turns, go, x) <
    body = turn (int64 i, bool more, float[2] held) => (bool again, float[2] next)
    <float ten = {10.0}>
    { again = Identity(more)  [grow] big = Mul(held, ten)  [root] next = Sqrt(big) }
  >
  [y] y = Neg(last)
}
"""

BRANCHES = """
branches (float[2] x, bool when) => (float[2] y)
<float ten = {10.0}>
{
  [choose] y = If(when) <
    then_branch = yes () => (float[2] a) { [grow] big = Mul(x, ten)  a = Sqrt(big) },
    else_branch = no () => (float[2] b) { [small] b = Div(x, ten) }
  >
}
"""

SCAN = """
scan (float[2] start, float[3, 2] rows) => (float[2] y, float[3, 2] all)
{
  [scan] y, all = Scan<num_scan_inputs=1, body = step (float[2] held, float[2] row) => (float[2] next, float[2] out)
    { [add] next = Add(held, row)  [square] out = Mul(next, next) }>(start, rows)
}
"""


def test_every_turn_of_a_loop():
    """0.4, 2, 4.47 are carried, ten times that is inside; all turns count."""
    found = observe_bodies(prepared(LOOP), Samples(({"x": np.float32([0.4, 0.1])},), "the test"))

    assert 10 * np.sqrt(20) == pytest.approx(found["big"].largest, rel=1e-6)
    assert (1.0, 6) == (found["big"].smallest, found["big"].count)
    assert np.sqrt(20) == pytest.approx(found["held"].largest, rel=1e-6)
    assert np.sqrt(10 * np.sqrt(20)) == pytest.approx(found["next"].largest, rel=1e-6)


def test_branches():
    """Only the branch that ran, over all sets of inputs."""
    one, other = ({"x": np.float32([7, 2]), "when": np.array(when)} for when in (True, False))
    model = prepared(BRANCHES)

    assert {"big", "a"} == set(observe_bodies(model, Samples((one,), "the test")))
    both = observe_bodies(model, Samples((one, other), "the test"))
    assert (70.0, np.float32(0.7)) == (both["big"].largest, both["b"].largest)


def test_scan():
    """What is carried, the rows, and what is made of them."""
    feeds = {"start": np.float32([1, 1]), "rows": np.float32([[1, 2], [3, 4], [5, 6]])}
    found = observe_bodies(prepared(SCAN), Samples((feeds,), "the test"))

    assert {"held": 7.0, "row": 6.0, "next": 13.0, "out": 169.0} == {name: r.largest for name, r in found.items()}


def test_memory_is_bounded(monkeypatch):
    """What does not fit together is read in several runs, and what is too large alone is left out."""
    samples = Samples(({"x": np.float32([0.4, 0.1])},), "the test")
    whole = observe_bodies(prepared(LOOP), samples)
    monkeypatch.setattr(body_tensors, "MOST_BYTES", 24)  # one tensor of 2 numbers in 3 turns

    assert whole == observe_bodies(prepared(LOOP), samples)
    monkeypatch.setattr(body_tensors, "MOST_BYTES", 23)
    assert {} == observe_bodies(prepared(LOOP), samples)


def test_shapes_that_change_from_turn_to_turn():
    """They cannot be stacked: no range is known, and nothing fails."""
    growing = """
    growing (float[n] x) => (float[m] y)
    <int64 turns = {3}, bool go = {1}>
    {
      [twice] y = Loop(turns, go, x) <
        body = turn (int64 i, bool more, float[k] held) => (bool again, float[l] next)
        { again = Identity(more)  [join] next = Concat<axis=0>(held, held) }
      >
    }
    """
    assert {} == observe_bodies(prepared(growing), Samples(({"x": np.float32([0.4, 0.1])},), "the test"))


def test_a_model_without_bodies():
    """There is nothing to do."""
    model = prepared("m (float[2] x) => (float[2] y) { y = Neg(x) }")
    assert {} == observe_bodies(model, Samples(({"x": np.float32([0.4, 0.1])},), "the test"))
