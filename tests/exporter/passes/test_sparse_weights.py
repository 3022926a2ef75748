"""Sparse weights are written out before anything else reads a model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from demi.errors import ConversionError
from demi.exporter.api import convert
from demi.exporter.passes.sparse_weights import with_dense_weights

PLACES = {
    "counted": np.array([1, 5]),
    "coordinates": np.array([[0, 1], [1, 2]]),
}


def model(indices, dims=(2, 3)):
    """A product with a weight of which two elements are not zero."""
    values = numpy_helper.from_array(np.float32([2, 3]), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), "at"), list(dims))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "sparse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        sparse_initializer=[sparse],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("indices", PLACES.values(), ids=PLACES)
def test_a_sparse_weight_becomes_dense(indices):
    dense = with_dense_weights(model(indices)).graph

    assert not dense.sparse_initializer
    assert [[0, 2, 0], [0, 0, 3]] == numpy_helper.to_array(dense.initializer[0]).tolist()


def test_a_model_with_one_is_converted():
    converted = convert(model(PLACES["counted"]), [{"x": np.ones((4, 2), np.float32)}])

    onnx.checker.check_model(converted.model, full_check=True)


def test_a_model_without_any_is_returned_as_it_is():
    plain = with_dense_weights(model(PLACES["counted"]))

    assert plain is with_dense_weights(plain)


@pytest.mark.parametrize(
    ("indices", "dims"),
    [(np.array([1, 6]), (2, 3)), (np.array([1, 5]), (1 << 20, 1 << 20))],
    ids=["beyond its shape", "far too large"],
)
def test_a_weight_that_cannot_be_written_out(indices, dims):
    with pytest.raises(ConversionError, match="the sparse weight `w` cannot be read"):
        with_dense_weights(model(indices, dims))
