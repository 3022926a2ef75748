"""Which nodes work on shapes alone, read from the bytes of a model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from demi.runtime.onnxruntime.shape_nodes import shape_nodes
from tests.models import parse, text


def found(body, on_gpu=(), header="(float[n, 4] x, int64[k] given) => (float[a, b] y) <int64[1] one = {1}>"):
    """The nodes of a graph that work on shapes alone."""
    return shape_nodes(text(parse(f"graph {header} {{ {body} }}")), on_gpu)


def test_what_follows_from_shapes_and_constants():
    """Shape and Size themselves, and all that reads nothing else."""
    body = """
      [shape] s = Shape(x) [size] t = Size(x) [first] f = Gather(s, one) [constant] c = Constant<value_ints = [2]>()
      [more] m = Mul(f, c) [both] both = Concat<axis = 0>(m, one) [y] y = Reshape(x, both)
    """
    assert {"shape", "size", "first", "more", "both"} == found(body)


def test_inputs_of_the_model_are_data():
    """A shape that a caller sends is not known before."""
    assert {"shape"} == found("[shape] s = Shape(x) [sum] t = Add(s, given) [y] y = Reshape(x, t)")


def test_what_lies_on_the_gpu_is_data():
    """A Range is made there, from a shape; what reads it on the CPU would fetch it back."""
    body = "[shape] s = Size(x) [range] r = Range(zero, s, step) [double] d = Add(r, r) [y] y = Cast<to = 1>(d)"
    header = "(float[n, 4] x) => (float[a] y) <int64 zero = {0}, int64 step = {1}>"

    assert {"shape", "range"} == found(body, {"shape", "range", "y"}, header)


def test_folded_nodes_hide_nothing():
    """A node that is on neither side was folded away."""
    body = "[shape] s = Shape(x) [folded] f = Gather(s, one) [more] m = Add(f, one) [y] y = Reshape(x, m)"

    assert {"shape", "folded", "more"} == found(body, {"shape", "y"})


def test_graphs_within_see_more_than_their_inputs():
    """A branch may read any value around it."""
    body = """
      [shape] s = Size(x) [some] b = Greater(s, zero)
      [if] y = If(b) <then_branch = g () => (float[n, 4] o) { o = Neg(x) }, else_branch = h () => (float[n, 4] p) { p = Abs(x) }>
    """
    header = "(float[n, 4] x) => (float[n, 4] y) <int64 zero = {0}>"

    assert {"shape", "some"} == found(body, (), header)


def test_nodes_without_a_name_are_not_trusted():
    """Nothing says where they run."""
    assert set() == found("s = Shape(x) f = Gather(s, one) y = Reshape(x, f)")


def test_weights_are_passed_over(tmp_path):
    """Any file that ONNX writes can be read, whatever lies between its nodes."""
    model = parse("graph (float[n, 4] x) => (float[n, 4] y) { [shape] s = Shape(x) [y] y = Reshape(x, s) }")
    proto = onnx.load_from_string(text(model))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((300, 300), np.float32), "w"))
    proto.metadata_props.add(key="k", value="v")
    onnx.save(proto, tmp_path / "m.onnx")

    assert {"shape"} == shape_nodes(tmp_path / "m.onnx", ())


@pytest.mark.parametrize("model", [b"", b"\x08\x08"])
def test_models_without_nodes(model):
    """There is nothing to find."""
    assert set() == shape_nodes(model, ())
