"""Types from schemas: what an operator shares with its other operands is known without asking a runtime."""

import onnx_ir as ir
import pytest

from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.schema_types import SchemaTypes
from tests.models import parse

HEADER = '<ir_version: 8, opset_import: ["" : 17, "mine" : 1, "com.microsoft" : 1]>'


def types(body, inputs="float[n, 2] x", output="float[n, 2] y"):
    """The type of every inner tensor, by name."""
    model = prepare(parse(f"{HEADER} m ({inputs}) => ({output}) <float[2, 2] w = {{1.0, 2.0, 3.0, 4.0}}> {{ {body} }}"))
    for value in model.graph.outputs:
        value.type = None  # a declared type would tell as well
    SchemaTypes()(model)
    return {value.name: value.dtype for node in model.graph for value in node.outputs}


@pytest.mark.parametrize(
    ("body", "name", "expected"),
    [
        ("a = mine.Pool(x) y = MatMul(a, w)", "a", ir.DataType.FLOAT),
        ("a = mine.Pool(x) y = MatMul(a, w)", "y", ir.DataType.FLOAT),
        ("a = SimplifiedLayerNormalization(x, w) b = Neg(a) y = Abs(b)", "b", ir.DataType.FLOAT),
        ("a = com.microsoft.FastGelu(x) y = Neg(a)", "a", ir.DataType.FLOAT),
        ("a = mine.Pool(x) s = Shape(a) y = Identity(s)", "a", None),
        ("a = mine.Pool(x) y = Gather(w, a)", "a", None),
        ("a = mine.Pool(x) b = mine.Pool(a) y = Neg(b)", "a", None),
        ("a = mine.Pool(x) b = Neg(a) c = Add(b, w) y = Identity(c)", "a", ir.DataType.FLOAT),
    ],
)
def test_type(body, name, expected):
    """It follows from the maker or from a reader, or stays unknown."""
    assert expected is types(body)[name]


def test_known_types_stay():
    """Nothing is said of a model whose types are known."""
    model = prepare(parse("m (float[n] x) => (float[n] y) { y = Neg(x) }"))

    assert not SchemaTypes()(model).modified


def test_graphs_of_a_node_keep_their_border():
    """A loop's operands share no types by position."""
    source = """
    m (float[n] x, int64 trips, bool go) => (float[n] y)
    {
      y = Loop (trips, go, x) <body = b (int64 i, bool on, float[n] before) => (bool on_out, float[n] after)
        { on_out = Identity(on) after = Neg(before) }>
    }
    """
    model = prepare(parse(source))
    model.graph.outputs[0].type = None

    assert not SchemaTypes()(model).modified
