"""Nodes that compute only on shapes, found in the bytes of a model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from demi.runtime.onnxruntime.shape_nodes import shape_nodes
from tests.models import parse, text


def found(body, on_gpu=(), header="(float[n, 4] x, int64[k] given) => (float[a, b] y) <int64[1] one = {1}>"):
    """Return the nodes of a graph that compute only on shapes."""
    return shape_nodes(text(parse(f"graph {header} {{ {body} }}")), on_gpu)


def test_nodes_on_shapes_and_constants():
    """Shape and Size are shape nodes, and so are nodes that read nothing else."""
    body = """
      [shape] s = Shape(x) [size] t = Size(x) [first] f = Gather(s, one) [constant] c = Constant<value_ints = [2]>()
      [more] m = Mul(f, c) [both] both = Concat<axis = 0>(m, one) [y] y = Reshape(x, both)
    """
    assert {"shape", "size", "first", "more", "both"} == found(body)


def test_inputs_of_the_model_are_data():
    """An input of the model is data, because its value is not known in advance."""
    assert {"shape"} == found("[shape] s = Shape(x) [sum] t = Add(s, given) [y] y = Reshape(x, t)")


def test_tensors_on_the_gpu_are_data():
    """A Range is computed on the GPU, so that its readers are not shape nodes."""
    body = "[shape] s = Size(x) [range] r = Range(zero, s, step) [double] d = Add(r, r) [y] y = Cast<to = 1>(d)"
    header = "(float[n, 4] x) => (float[a] y) <int64 zero = {0}, int64 step = {1}>"

    assert {"shape", "range"} == found(body, {"shape", "range", "y"}, header)


def test_folded_nodes():
    """Nodes that were folded away do not matter."""
    body = "[shape] s = Shape(x) [folded] f = Gather(s, one) [more] m = Add(f, one) [y] y = Reshape(x, m)"

    assert {"shape", "folded", "more"} == found(body, {"shape", "y"})


def test_subgraphs_read_outer_values():
    """A subgraph may read any value of the graphs around it."""
    body = """
      [shape] s = Size(x) [some] b = Greater(s, zero)
      [if] y = If(b) <then_branch = g () => (float[n, 4] o) { o = Neg(x) }, else_branch = h () => (float[n, 4] p) { p = Abs(x) }>
    """
    header = "(float[n, 4] x) => (float[n, 4] y) <int64 zero = {0}>"

    assert {"shape", "some"} == found(body, (), header)


def test_nodes_without_a_name():
    """Nodes without a name are not shape nodes, because their device is not known."""
    assert set() == found("s = Shape(x) f = Gather(s, one) y = Reshape(x, f)")


def test_weights_are_skipped(tmp_path):
    """Fields that are not nodes, such as weights, are skipped."""
    model = parse("graph (float[n, 4] x) => (float[n, 4] y) { [shape] s = Shape(x) [y] y = Reshape(x, s) }")
    proto = onnx.load_from_string(text(model))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((300, 300), np.float32), "w"))
    proto.metadata_props.add(key="k", value="v")
    onnx.save(proto, tmp_path / "m.onnx")

    assert {"shape"} == shape_nodes(tmp_path / "m.onnx", ())


@pytest.mark.parametrize("model", [b"", b"\x08\x08"])
def test_models_without_nodes(model):
    """A model without nodes has no shape nodes."""
    assert set() == shape_nodes(model, ())
