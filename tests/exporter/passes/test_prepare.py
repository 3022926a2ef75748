"""Prepare: any valid graph becomes easy to rewrite, and computes what it did."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.errors import ConversionError
from demi.exporter.passes.prepare import prepare, prepare_pass
from tests.models import (
    BRANCHES,
    LOOP,
    MLP,
    SCAN,
    check,
    ops,
    parse,
    prepared,
    run,
    text,
)

UNNAMED = "unnamed (float[n] x) => (float[n] y) { a = Neg(x) b = Abs(a) y = Add(a, b) }"

TWINS = """
twins (bool flag, float[n] x) => (float[n] y)
{
  y = If (flag) <
    then_branch = yes () => (float[n] out) { [same] inner = Exp(x) [last] out = Neg(inner) },
    else_branch = no () => (float[n] out) { [same] inner = Abs(x) [last] out = Neg(inner) }
  >
}
"""
"""Two branches whose nodes and values have the same names: valid ONNX."""

LOCAL_FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
local (float[n] x) => (float[n] y) { a = mine.twice(x) y = mine.twice(a) }
<domain: "mine", opset_import: ["" : 17]>
twice (p) => (q) { q = Add(p, p) }
"""


def names(model):
    """Names of all nodes, and of all values."""
    graphs = (model.graph, *model.graph.subgraphs())
    values = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    values += [value for each in model.graph.all_nodes() for value in each.outputs]
    return [each.name for each in model.graph.all_nodes()], [value.name for value in dict.fromkeys(values)]


class TestNames:
    """Plans go by names."""

    def test_unnamed_nodes_get_one(self):
        """Every node can be named in a plan."""
        nodes, _ = names(prepare(parse(UNNAMED)))

        assert all(nodes)
        assert 3 == len(set(nodes))

    def test_equal_names(self):
        """Two nodes of one name get different names."""
        nodes, _ = names(prepared("same (float[n] x) => (float[n] y) { [a] b = Neg(x) [a] y = Abs(b) }"))

        assert 2 == len(set(nodes))
        assert "a" == nodes[0]

    def test_equal_names_in_two_branches(self):
        """Names are unique in the whole model, not only where ONNX asks for it."""
        model = prepared(TWINS)
        nodes, values = names(model)

        assert sorted(set(nodes)) == sorted(nodes)
        assert sorted(set(values)) == sorted(values)
        check(model)

    def test_branches_still_answer(self):
        """Renaming changes nothing a branch computes."""
        for flag, expected in ((True, -np.e), (False, -1.0)):
            got = run(prepared(TWINS), {"flag": np.array(flag), "x": np.float32([1.0])})["y"]
            assert [pytest.approx(expected)] == got.tolist()

    def test_public_names_stay(self):
        """Inputs and outputs keep names, order, types and shapes."""
        source = "public (float[b, 2] q, float[b, 2] d) => (float[b, 2] z, float[b, 2] a) { a = Sub(q, d) z = Neg(a) }"
        model = prepared(source)

        assert ["q", "d"] == [value.name for value in model.graph.inputs]
        assert ["z", "a"] == [value.name for value in model.graph.outputs]
        assert [["b", 2]] * 4 == [
            [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            for value in (*model.graph.inputs, *model.graph.outputs)
        ]

    def test_free_axes_get_a_name(self):
        """An unnamed free axis is called after its input and position."""
        model = prepared("free (float[?, 2, m] x) => (float[k, 2, m] y) { y = Relu(x) }")

        assert ["x_axis0", 2, "m"] == [
            dim if isinstance(dim, int) else dim.value for dim in model.graph.inputs[0].shape
        ]

    @pytest.mark.parametrize("sign", ["?", "-1", "None", "unk__", -1, ""])
    def test_axes_that_share_a_sign_for_unknown(self, sign):
        """Axes that share a placeholder are different axes; shapes that ONNX infers determine the outputs' names."""
        model = parse("two (float[a, 3] x, float[b, 3] z) => (float[a, b] y) { t = Transpose(z) y = MatMul(x, t) }")
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.shape = ir.Shape([dim if isinstance(dim, int) else sign for dim in value.shape])

        prepared = prepare(model)

        shapes = [value.shape for value in (*prepared.graph.inputs, *prepared.graph.outputs)]
        assert [ir.Shape(["x_axis0", 3]), ir.Shape(["z_axis0", 3]), ir.Shape(["x_axis0", "z_axis0"])] == shapes

    def test_an_output_axis_that_nothing_is_proven_of(self):
        """It stays without a name: how many rows are chosen is for the run to say."""
        model = prepared("some (float[?] x) => (int64[?, ?] y) { y = NonZero(x) }")

        assert [None, None] == [dim if isinstance(dim, int) else dim.value for dim in model.graph.outputs[0].shape]

    def test_input_without_a_shape(self):
        """An input of unknown rank has no axes to name."""
        assert prepared("rank (float x) => (float y) { y = Relu(x) }").graph.inputs


class TestConstants:
    """Constant nodes become initializers, so that plans see their values."""

    @pytest.mark.parametrize(
        ("attribute", "kind", "expected"),
        [
            ("value: tensor = float[2] {1.0, 2.0}", "float[2] y", [1.0, 2.0]),
            ("value_float = 1.5", "float y", 1.5),
            ("value_floats = [1.5, 2.5]", "float[2] y", [1.5, 2.5]),
            ("value_int = 3", "int64 y", 3),
            ("value_ints = [3, 4]", "int64[2] y", [3, 4]),
        ],
    )
    def test_every_form(self, attribute, kind, expected):
        """A constant in any form becomes an initializer."""
        model = prepared(
            f"constant (float[n] x) => ({kind}, float[n] z) {{ c = Constant <{attribute}> () y = Identity(c) z = Neg(x) }}"
        )

        assert "Constant" not in ops(model)
        assert expected == run(model, {"x": np.float32([0])})["y"].tolist()

    def test_constants_in_branches(self):
        """Constants in subgraphs are lifted as well."""
        model = prepared(
            "branch (bool c, float[n] x) => (float[n] y) { y = If (c) <"
            "then_branch = a () => (float[n] p) { k = Constant <value_float = 2.0> () p = Mul(x, k) },"
            "else_branch = b () => (float[n] q) { q = Identity(x) }> }"
        )

        assert "Constant" not in ops(model)
        assert [6.0] == run(model, {"c": np.array(True), "x": np.float32([3])})["y"].tolist()

    def test_constant_that_is_an_output(self):
        """A constant that is an output is an output still."""
        model = prepared("out (float[n] x) => (float y, float[n] z) { y = Constant <value_float = 2.0> () z = Neg(x) }")

        check(model)
        assert 2.0 == run(model, {"x": np.float32([0])})["y"].item()


class TestStructure:
    """The structure of a prepared graph."""

    def test_local_functions_are_inlined(self):
        """Functions of the model are written out."""
        model = prepare(parse(LOCAL_FUNCTION))

        assert ["Add", "Add"] == ops(model)
        assert not model.functions
        assert [12.0] == run(model, {"x": np.float32([3])})["y"].tolist()

    @pytest.mark.parametrize("source", [MLP, BRANCHES, LOOP, SCAN, UNNAMED, TWINS])
    def test_every_value_has_a_type(self, source):
        """Types are there wherever ONNX can infer them."""
        assert all(value.type is not None for each in prepared(source).graph.all_nodes() for value in each.outputs)

    @pytest.mark.parametrize("source", [MLP, BRANCHES, LOOP, SCAN, UNNAMED, TWINS, LOCAL_FUNCTION])
    def test_original_is_left_alone(self, source):
        """The model that was given is not changed."""
        model = parse(source)
        before = text(model)

        prepare(model)

        assert before == text(model)

    @pytest.mark.parametrize("source", [MLP, BRANCHES, LOOP, SCAN, UNNAMED, TWINS])
    def test_twice_is_once(self, source):
        """A prepared model has nothing left to prepare."""
        assert text(prepared(source)) == text(prepare(prepared(source)))

    def test_a_loop_carries_a_sequence(self):
        """The body's input has the type of the sequence that is carried into it, and the model runs."""
        model = prepared(
            """seq (float[n] x) => (float[m] y) <int64 turns = {2}, bool go = {1}>
        { none = SequenceEmpty() all = Loop(turns, go, none) <body = b (int64 turn, bool going, parts)
          => (bool more, longer) { more = Identity(going) longer = SequenceInsert(parts, x) }>
          y = ConcatFromSequence<axis=0>(all) }"""
        )
        body = model.graph[1].attributes["body"].as_graph()

        assert isinstance(body.inputs[2].type, ir.SequenceType)
        assert [1.0, 1.0] == run(model, {"x": np.float32([1])})["y"].tolist()

    def test_sequences_have_their_type(self):
        """A sequence of tensors gets a sequence type, not a tensor type."""
        model = prepared(
            "seq (float[n] x) => (float[n] y) <int64 at = {0}> { s = SequenceConstruct(x, x) y = SequenceAt(s, at) }"
        )

        assert isinstance(model.graph[0].outputs[0].type, ir.SequenceType)
        check(model)
        assert [1.0] == run(model, {"x": np.float32([1])})["y"].tolist()


class TestErrors:
    """Graphs that cannot be prepared."""

    CUSTOM = (
        '<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>'
        "custom (float[n] x) => (float[n] y) {types} {{ [odd] a = mine.Secret(x) y = Neg(a) }}"
    )

    def test_type_that_is_not_known(self):
        """A tensor whose type ONNX cannot infer, behind a custom operator, is left without one."""
        model = prepare(parse(self.CUSTOM.format(types="")))

        assert ["Secret", "Neg"] == ops(model)
        assert model.graph[0].outputs[0].type is None

    def test_type_that_is_stated(self):
        """A custom operator is fine when the model states the type of what it makes."""
        assert ["Secret", "Neg"] == ops(prepare(parse(self.CUSTOM.format(types="<float[n] a>"))))

    def test_graph_with_a_cycle(self):
        """A graph that feeds itself has no order to compute it in."""
        model = parse("cycle (float[n] x) => (float[n] y) { a = Add(x, x) y = Neg(a) }")
        model.graph[0].replace_input_with(1, model.graph[1].outputs[0])
        with pytest.raises(ConversionError, match="cannot be prepared"):
            prepare(model)


def test_a_prepared_model_needs_no_more_preparing():
    """The pass says whether the copy is another than what it was given: a second time it is not."""
    model = parse("m (float[n] x) => (float[n] y) { two = Constant <value_float = 2.0> () y = Mul(x, two) }")

    once = prepare_pass(model)

    assert once.modified
    assert not prepare_pass(prepare_pass(once.model).model).modified
