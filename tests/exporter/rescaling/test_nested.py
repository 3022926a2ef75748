"""Bodies inside of bodies: scales pass through them, their ranges are observed, and the checker follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.observe import observe
from demi.calibration.rescaling.checker import check_rescaled
from demi.calibration.samples import Samples
from demi.exporter.rescaling.rescale import Rescaling, differing_bits, rescale_prepared
from tests.models import prepared

LARGE = np.linspace(-3000, 3000, 8, dtype=np.float32).reshape(2, 4)

AROUND = """
nested (float[2, 4] x) => (float[2, 4] y)
<float hundred = {{100.0}}, float small = {{0.001}}, int64 turns = {{3}}, bool go = {{1}}>
{{
  [grow] big = Mul(x, hundred)
  [outer] last = Loop(turns, go, big) <
    body = turn (int64 i, bool more, float[2, 4] held) => (bool again, float[2, 4] next)
    {{ again = Identity(more)  {inside} }}
  >
  [shrink] y = Mul(last, small)
}}
"""
"""What the loop carries overflows."""

PASSED = {
    "If in Loop": """
      [choose] next = If(more) <
        then_branch = yes () => (float[2, 4] a) { [relu] a = Relu(held) },
        else_branch = no () => (float[2, 4] b) { [neg] b = Neg(held) }
      >""",
    "Loop in Loop": """
      [inner] next = Loop(turns, more, held) <
        body = again (int64 j, bool m, float[2, 4] h) => (bool n, float[2, 4] o)
        { n = Identity(m)  [leak] o = LeakyRelu<alpha=0.5>(h) }
      >""",
    "Scan in Loop": """
      zero = Sub(held, held)
      [row] start = ReduceSum<keepdims=0>(zero, first)
      [scan] total, next = Scan<num_scan_inputs = 1, body = sum (float[4] s, float[4] r) => (float[4] t, float[4] u)
        { [add] t = Add(s, r)  [keep] u = Abs(r) }>(start, held)""",
}
"""Control flow in the loop's body, through which the scale must pass."""

INSIDE = """
inside (float[2, 4] x) => (float[2, 4] y)
<float hundred = {100.0}, float small = {0.0078125}, int64 turns = {3}, bool go = {1}>
{
  [outer] last = Loop(turns, go, x) <
    body = turn (int64 i, bool more, float[2, 4] held) => (bool again, float[2, 4] next)
    {
      again = Identity(more)
      [inner] next = Loop(turns, more, held) <
        body = deeper (int64 j, bool m, float[2, 4] h) => (bool n, float[2, 4] o)
        { n = Identity(m)  [grow] big = Mul(h, hundred)  [shrink] o = Mul(big, small) }
      >
    }
  >
  [y] y = Tanh(last)
}
"""
"""Nothing overflows but a tensor two bodies deep."""

UNSTEADY = INSIDE.replace("Loop(turns, more, held)", "Loop(i, more, held)")
"""The inner loop takes a turn more each time: what it makes cannot be stacked."""


def rescaled(source: str, x: np.ndarray = LARGE) -> tuple[Rescaling, ir.Model]:
    """The rescaling of a model on one set of inputs, and the model."""
    model = prepared(source)
    profile = observe(model, Samples(({"x": x},), "the test"))
    return rescale_prepared(model, [{"x": x}], profile), model


@pytest.mark.parametrize("kind", PASSED)
def test_a_scale_passes_through_and_no_bit_changes(kind: str):
    """Outer constants repair what the bodies carry; a certificate with another exponent is refused."""
    source = AROUND.format(inside=PASSED[kind])
    if kind.startswith("Scan"):
        source = source.replace("int64 turns", "int64[1] first = {0}, int64 turns")
    found, model = rescaled(source)

    assert found.certificate is not None
    assert found.certificate.before.nodes > 0
    assert 0 == found.certificate.after.nodes
    assert [] == differing_bits(model, found.model, [{"x": LARGE}, {"x": -LARGE / 3}])
    assert [] == check_rescaled(model, found.model, found.certificate)
    for name, exponent in found.certificate.tensors.items():
        tensors = found.certificate.tensors | {name: exponent + 1}
        assert check_rescaled(model, found.model, replace(found.certificate, tensors=tensors))


def test_an_overflow_two_bodies_deep_is_seen_and_repaired():
    """Its range is handed out through both loops, and two constants inside cancel."""
    found, model = rescaled(INSIDE)

    assert found.certificate is not None
    assert (2, 0) == (found.certificate.before.nodes, found.certificate.after.nodes)
    assert {"grow", "shrink"} == set(found.fits)
    assert [] == differing_bits(model, found.model, [{"x": LARGE}, {"x": -LARGE / 3}])


def test_what_cannot_be_handed_out_keeps_its_scale():
    """Its range is not known: nothing there is scaled up, nothing breaks, and the outer body is known nevertheless."""
    model = prepared(UNSTEADY)
    profile = observe(model, Samples(({"x": LARGE},), "the test"))
    names = {node.name: node.outputs[0].name for node in model.graph.all_nodes()}

    found = rescale_prepared(model, [{"x": LARGE}], profile)

    assert profile.get(names["grow"]) is None
    assert profile.get(names["inner"]) is not None
    assert found.model is model
