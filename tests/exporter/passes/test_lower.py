"""Lowering: the one seam through which every plan becomes a graph, and what it promises."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.emulation.widen import widen
from demi.calibration.sessions import session_for
from demi.errors import ConversionError, InputError
from demi.exporter.operators.schemas import half_operands, opset_version, touches_float
from demi.exporter.passes.lower import apply_plan
from demi.exporter.passes.prepare import prepare
from demi.float16 import BF16, FP16
from demi.plan import Decision, Precision, Reason, make_plan
from tests.contracts import require_tidy
from tests.models import (
    BRANCHES,
    EMBEDDING,
    LAYER_NORM,
    LOOP,
    MLP,
    OVERFLOW,
    RMS_NORM,
    SCAN,
    SQUARES,
    check,
    node,
    ops,
    parse,
    prepared,
    run,
    text,
)

FLOAT, HALF, BFLOAT = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
ALL = [BRANCHES, EMBEDDING, LAYER_NORM, LOOP, MLP, OVERFLOW, RMS_NORM, SCAN, SQUARES]

DIAMOND = """
diamond (float[n] x) => (float[n] y)
{
  [top] a = Neg(x)
  [left] b = Abs(a)
  [right] c = Relu(a)
  [bottom] y = Add(b, c)
}
"""


def plan(model, half, fmt=FP16):
    """A plan that computes the nodes named in `half` in half, and all others in single."""
    decisions = [
        Decision(each.name, each.op_type, Precision.HALF if each.name in half else Precision.SINGLE, Reason.SAFE)
        for each in model.graph.all_nodes()
        if touches_float(each)
    ]
    return make_plan(fmt.name, decisions)


def half_nodes(model, dtype=HALF):
    """The names of all nodes that can be half."""
    return [each.name for each in model.graph.all_nodes() if half_operands(each, opset_version(each, model), dtype)]


def lower(source, half=None, fmt=FP16, **options):
    """Lower a model in text, by default with every node in half that can be; the result keeps `tidy`'s contract."""
    model = prepared(source)
    chosen = half_nodes(model, HALF if fmt is FP16 else BFLOAT) if half is None else half
    lowered = apply_plan(model, plan(model, chosen, fmt), **options)
    require_tidy(lowered.model)
    return lowered


def casts(model):
    """Every Cast as (what is cast, to what)."""
    return [
        (each.inputs[0].name, ir.DataType(each.attributes["to"].as_int()).name)
        for each in model.graph.all_nodes()
        if each.op_type == "Cast"
    ]


def weights(model):
    """Every initializer's type, by name."""
    graphs = (model.graph, *model.graph.subgraphs())
    return {name: value.dtype.name for graph in graphs for name, value in graph.initializers.items()}


class TestCasts:
    """A tensor that crosses is cast once in each direction."""

    def test_none_in_a_half_model(self):
        """Only the border of an all-half model is cast."""
        lowered = lower(MLP)

        assert [("x", "FLOAT16"), ("y_fp16", "FLOAT")] == casts(lowered.model)
        assert 2 == lowered.casts

    def test_none_in_a_single_model(self):
        """A plan without half changes nothing at all."""
        lowered = lower(MLP, half=[])

        assert 0 == lowered.casts
        assert text(prepared(MLP)) == text(lowered.model)

    def test_once_for_all_readers(self):
        """Two half readers of one single tensor share a cast."""
        assert [("a", "FLOAT16")] == casts(lower(DIAMOND, ["left", "right", "bottom"]).model)[:1]
        assert 2 == lower(DIAMOND, ["left", "right", "bottom"]).casts

    def test_once_in_each_direction(self):
        """A half tensor with single readers is cast back once, and read in half by the others."""
        lowered = lower(DIAMOND, ["top", "left"])

        assert {("x", "FLOAT16"), ("a", "FLOAT"), ("b", "FLOAT")} == set(casts(lowered.model))
        assert 3 == lowered.casts

    def test_output_and_reader_share_theirs(self):
        """A half tensor that is a public output and has a single reader is cast back once."""
        source = "both (float[n] x) => (float[n] a, float[n] y) { [one] a = Neg(x) [two] y = Exp(a) }"
        lowered = lower(source, ["one"])

        assert [("x", "FLOAT16"), ("a_fp16", "FLOAT")] == casts(lowered.model)
        assert 2 == lowered.casts
        assert ["a", "y"] == [value.name for value in lowered.model.graph.outputs]
        check(lowered.model)

    def test_no_cast_of_integers(self):
        """Ids, shapes and indices cross nothing."""
        assert "input_ids" not in dict(casts(lower(EMBEDDING).model))

    def test_cast_stands_where_the_tensor_is_made(self):
        """The cast of a node's result follows the node."""
        model = lower(DIAMOND, ["left", "right", "bottom"]).model

        assert ["Neg", "Cast", "Abs", "Relu", "Add", "Cast"] == ops(model)

    def test_count_is_that_of_the_graph(self):
        """The number that is reported is the number of casts the plan has added."""
        for source in ALL:
            before = ops(prepared(source)).count("Cast")
            lowered = lower(source)
            assert ops(lowered.model).count("Cast") - before == lowered.casts


class TestWeights:
    """Weights are stored once for each precision that reads them."""

    def test_half_weights_replace_single_ones(self):
        """A weight that only half nodes read is stored in half."""
        assert {name + "_fp16": "FLOAT16" for name in ("w1", "b1", "w2")} == weights(lower(MLP).model)

    def test_single_weights_stay(self):
        """A weight of a single node stays as it is."""
        assert {"w1": "FLOAT", "b1": "FLOAT", "w2_fp16": "FLOAT16"} == weights(lower(MLP, ["act", "second"]).model)

    def test_shared_between_half_and_single(self):
        """A weight with readers of both kinds is stored twice, and cast never."""
        source = "shared (float[n] x) => (float[n] y) <float w = {0.1}> { [a] p = Mul(x, w) [b] q = Mul(x, w) [c] r = Add(p, w) [d] y = Add(q, r) }"
        model = lower(source, ["a", "c"]).model

        assert {"w": "FLOAT", "w_fp16": "FLOAT16"} == weights(model)
        assert "w" not in dict(casts(model))

    def test_shared_between_scopes(self):
        """A weight of the outer graph that a branch reads is stored once, outside."""
        model = lower(BRANCHES).model

        assert {"two_fp16": "FLOAT16"} == weights(model)
        assert ["two_fp16"] == list(model.graph.initializers)

    @pytest.mark.parametrize(("fmt", "dtype"), [(FP16, np.float16), (BF16, ml_dtypes.bfloat16)])
    def test_values_are_rounded(self, fmt, dtype):
        """A half weight holds the nearest half, ties to even."""
        model = lower(
            "m (float[n] x) => (float[n] y) <float[2] w = {0.1, 1.00048828125}> { [it] y = Mul(x, w) }", fmt=fmt
        ).model
        stored = model.graph.initializers[f"w_{fmt.name}"].const_value.numpy()

        assert dtype == stored.dtype
        np.testing.assert_array_equal(np.float32([0.1, 1.00048828125]).astype(dtype), stored)

    def test_scalar(self):
        """A weight of no dimension keeps having none."""
        model = lower(OVERFLOW).model

        assert () == model.graph.initializers["hundred_fp16"].const_value.numpy().shape

    def test_losses_are_reported(self):
        """Weights whose values overflow or vanish are named; others are not."""
        losses = lower(
            "m (float[n] x) => (float[n] y) <float[2] w = {1e5, 1e-12}, float[1] v = {0.1}> { [a] p = Mul(x, w) [b] y = Mul(p, v) }"
        ).losses

        assert ["w"] == list(losses)
        assert (1, 1) == (losses["w"].overflowed, losses["w"].vanished)

    def test_weight_that_is_an_input(self):
        """A weight that callers may replace keeps its public type and is cast, not converted."""
        model = prepared("m (float[n] x) => (float[n] y) <float w = {0.1}> { [it] y = Mul(x, w) }")
        model.graph.inputs.append(model.graph.initializers["w"])
        lowered = apply_plan(model, plan(model, ["it"])).model

        assert ["FLOAT", "FLOAT"] == [value.dtype.name for value in lowered.graph.inputs]
        assert ("w", "FLOAT16") in casts(lowered)
        check(lowered)
        assert [6.0] == run(lowered, {"x": np.float32([3]), "w": np.array(2, np.float32)})["y"].tolist()

    def test_weight_that_is_an_output(self):
        """A weight that is an output is one still, in float32."""
        model = prepared("m (float[n] x) => (float w, float[n] y) <float w = {0.1}> { [it] y = Mul(x, w) }")
        lowered = apply_plan(model, plan(model, ["it"])).model

        assert ["w", "y"] == [value.name for value in lowered.graph.outputs]
        check(lowered)
        assert np.float32(0.1) == run(lowered, {"x": np.float32([1])})["w"]

    def test_weights_in_a_subgraph(self):
        """A weight that a branch holds itself is converted there."""
        source = "m (bool c, float[n] x) => (float[n] y) { [if] y = If (c) <then_branch = a () => (float[n] p) <float k = {2.0}> { [it] p = Mul(x, k) }, else_branch = b () => (float[n] q) { [or] q = Neg(x) }> }"
        model = lower(source).model

        assert "FLOAT16" in weights(model).values()
        check(model)
        assert [6.0] == run(model, {"c": np.array(True), "x": np.float32([3])})["y"].tolist()


class TestPublicSide:
    """Names, order and types of inputs and outputs."""

    @pytest.mark.parametrize("source", ALL)
    @pytest.mark.parametrize("fmt", [FP16, BF16], ids=["fp16", "bf16"])
    def test_is_as_before(self, source, fmt):
        """For any plan, the model's inputs and outputs are unchanged."""
        before, after = prepared(source).graph, lower(source, fmt=fmt).model.graph

        assert [str(value) for value in before.inputs] == [str(value) for value in after.inputs]
        assert [(value.name, value.dtype, value.shape) for value in before.outputs] == [
            (value.name, value.dtype, value.shape) for value in after.outputs
        ]

    def test_output_that_others_read_in_half(self):
        """An output that half nodes read is public in float32 and read in half."""
        source = "both (float[n] x) => (float[n] a, float[n] y) { [one] a = Neg(x) [two] y = Abs(a) }"
        model = lower(source).model

        assert node(model, "two").inputs[0].dtype is HALF
        assert [("a", FLOAT), ("y", FLOAT)] == [(value.name, value.dtype) for value in model.graph.outputs]
        check(model)

    def test_output_that_is_an_input(self):
        """An input that is handed through stays one and the same."""
        model = lower("through (float[n] x) => (float[n] x, float[n] y) { [it] y = Neg(x) }").model

        assert ["x", "y"] == [value.name for value in model.graph.outputs]
        assert [FLOAT, FLOAT] == [value.dtype for value in model.graph.outputs]
        check(model)

    def test_one_value_as_two_outputs(self):
        """A value that is an output twice is cast once, and keeps its name both times."""
        model = parse("twice (float[n] x) => (float[n] y) { [it] y = Neg(x) }")
        model.graph.outputs.append(model.graph.outputs[0])
        model = prepare(model)
        lowered = apply_plan(model, plan(model, ["it"]))

        assert ["y", "y"] == [value.name for value in lowered.model.graph.outputs]
        assert 2 == lowered.casts
        check(lowered.model)

    @pytest.mark.parametrize("source", ALL)
    def test_original_is_left_alone(self, source):
        """The prepared model is not changed, and can be lowered again."""
        model = prepared(source)
        before = text(model)

        first = apply_plan(model, plan(model, half_nodes(model))).model

        assert before == text(model)
        assert text(first) == text(apply_plan(model, plan(model, half_nodes(model))).model)

    def test_names_that_are_taken(self):
        """A model whose own names look like ours stays valid, and keeps its public ones."""
        source = "m (float[n] x) => (float[n] y_fp16) <float y = {2.0}, float y_fp16_fp16 = {3.0}> { [x_to_fp16] x_fp16 = Mul(x, y) [it] y_fp16 = Mul(x_fp16, y_fp16_fp16) }"
        model = lower(source).model

        check(model)
        assert ["y_fp16"] == [value.name for value in model.graph.outputs]
        assert [6.0] == run(model, {"x": np.float32([1])})["y_fp16"].tolist()


class TestHalfIO:
    """`--half-io`."""

    def test_inputs_and_outputs_are_half(self):
        """Float inputs and outputs are half; an all-half model needs no cast at all."""
        lowered = lower(MLP, half_io=True)

        assert 0 == lowered.casts
        assert [HALF, HALF] == [value.dtype for value in (*lowered.model.graph.inputs, *lowered.model.graph.outputs)]
        assert ["x", "y"] == [value.name for value in (*lowered.model.graph.inputs, *lowered.model.graph.outputs)]
        check(lowered.model)

    def test_single_model(self):
        """A single model casts at its border."""
        lowered = lower(MLP, half=[], half_io=True)

        assert [("x", "FLOAT"), ("y_fp32", "FLOAT16")] == casts(lowered.model)
        check(lowered.model)

    def test_integers_stay(self):
        """Ids are ids."""
        model = lower(EMBEDDING, half_io=True).model

        assert ["INT64", "INT64"] == [value.dtype.name for value in model.graph.inputs]
        assert ["FLOAT16"] == [value.dtype.name for value in model.graph.outputs]

    def test_input_that_is_an_output(self):
        """An input that is handed through is half on both sides."""
        model = lower("through (float[n] x) => (float[n] x, float[n] y) { [it] y = Neg(x) }", half_io=True).model

        check(model)
        assert [0.5] == run(model, {"x": np.float16([0.5])})["x"].tolist()
        assert [-0.5] == run(widen(model), {"x": np.float16([0.5])})["y"].tolist()

    def test_weight_that_is_an_input(self):
        """A default that callers may replace is half with its input."""
        model = prepared("m (float[n] x) => (float[n] y) <float w = {0.1}> { [it] y = Mul(x, w) }")
        model.graph.inputs.append(model.graph.initializers["w"])
        lowered = apply_plan(model, plan(model, ["it"]), half_io=True).model

        check(lowered)
        assert [HALF, HALF] == [value.dtype for value in lowered.graph.inputs]
        assert float(np.float16(0.1)) == run(lowered, {"x": np.float16([1])})["y"].item()

    @pytest.mark.parametrize("source", ALL)
    def test_every_model_stays_valid(self, source):
        """Half at the border works with any graph."""
        check(lower(source, half_io=True).model)


class TestSubgraphs:
    """If, Loop and Scan keep the types at their border."""

    FEEDS = {  # noqa: RUF012
        BRANCHES: {"flag": np.array(True), "x": np.float32([0.5, 1.0])},
        LOOP: {"x": np.float32([0.5, 1.0])},
        SCAN: {"x": np.float32([[0.5, 1.0], [2.0, 4.0]])},
    }

    @pytest.mark.parametrize("source", [BRANCHES, LOOP, SCAN], ids=["If", "Loop", "Scan"])
    @pytest.mark.parametrize("fmt", [FP16, BF16], ids=["fp16", "bf16"])
    def test_half_bodies_answer_as_before(self, source, fmt):
        """Numbers that half holds exactly come out the same."""
        model = lower(source, fmt=fmt).model
        before, after = run(prepared(source), self.FEEDS[source]), run(widen(model), self.FEEDS[source])

        check(model)
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])

    @pytest.mark.parametrize(
        ("source", "inner"), [(BRANCHES, ["inner_add"]), (LOOP, ["grow", "shrink"]), (SCAN, ["weigh"])]
    )
    def test_only_the_body_in_half(self, source, inner):
        """An outer tensor that only a body reads in half is cast outside, once."""
        model = lower(source, inner).model

        before, after = run(prepared(source), self.FEEDS[source]), run(widen(model), self.FEEDS[source])
        casts_inside = [each for graph in model.graph.subgraphs() for each in graph if each.op_type == "Cast"]

        check(model)
        assert all(each.inputs[0].producer() or each.inputs[0].is_graph_input() for each in casts_inside)
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])

    def test_outer_half_value_in_a_single_body(self):
        """A half tensor of the outer graph is cast back for a single body, outside of it."""
        model = lower(BRANCHES, ["before"]).model

        assert ("outer", "FLOAT") in casts(model)
        assert "Cast" not in [each.op_type for graph in model.graph.subgraphs() for each in graph]
        check(model)

    def test_border_is_float(self):
        """Inputs and outputs of a body keep their types."""
        for graph in lower(LOOP).model.graph.subgraphs():
            assert ["INT64", "BOOL", "FLOAT"] == [value.dtype.name for value in graph.inputs]
            assert ["BOOL", "FLOAT"] == [value.dtype.name for value in graph.outputs]

    def test_twins_in_two_branches(self):
        """Nodes of one name in two branches have decisions of their own."""
        source = "twins (bool c, float[n] x) => (float[n] y) { y = If (c) <then_branch = a () => (float[n] o) { [same] o = Neg(x) }, else_branch = b () => (float[n] o) { [same] o = Abs(x) }> }"
        model = prepared(source)
        names = [each.name for each in model.graph.all_nodes() if each.op_type in ("Neg", "Abs")]
        lowered = apply_plan(model, plan(model, names[:1])).model

        assert [HALF, FLOAT] == [
            each.outputs[0].dtype for each in lowered.graph.all_nodes() if each.op_type in ("Neg", "Abs")
        ]
        check(lowered)


class TestTypes:
    """The types of a half node's operands."""

    def test_constant_of_shape(self):
        """The value that names the type follows the plan."""
        source = "m (int64[1] s) => (float[n] y) { [fill] a = ConstantOfShape <value: tensor = float[1] {0.1}> (s) [it] y = Neg(a) }"
        model = lower(source).model

        assert HALF is node(model, "fill").attributes["value"].as_tensor().dtype
        check(model)
        assert [-float(np.float16(0.1))] == run(model, {"s": np.array([1])})["y"].tolist()

    def test_cast(self):
        """A Cast to float32 casts to half when it is half."""
        source = "m (int64[n] x) => (float[n] y) { [cast] a = Cast <to = 1> (x) [it] y = Neg(a) }"
        model = lower(source).model

        assert int(HALF) == node(model, "cast").attributes["to"].as_int()
        check(model)

    def test_cast_to_integers(self):
        """A Cast to integers reads half and returns integers."""
        model = lower("m (float[n] x) => (int64[n] y) { [a] b = Neg(x) [cast] y = Cast <to = 7> (b) }").model

        assert 7 == node(model, "cast").attributes["to"].as_int()
        assert node(model, "cast").inputs[0].dtype is HALF
        check(model)

    def test_operands_that_must_be_float(self):
        """Resize's scales stay float32 while its image is half."""
        source = "m (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1.0, 1.0, 2.0, 2.0}> { [it] y = Resize(x, , s) }"
        model = lower(source).model

        assert {"s": "FLOAT"} == weights(model)
        assert node(model, "it").inputs[0].dtype is HALF
        check(model)

    def test_half_parts_are_left_alone(self):
        """A part that was half already is not touched, even in a single plan."""
        source = "m (float[n] x) => (float[n] y) <float16 w = {0.1}> { [down] a = Cast <to = 10> (x) [old] b = Mul(a, w) [up] c = Cast <to = 1> (b) [new] y = Exp(c) }"
        model = lower(source, half=[]).model

        assert text(prepared(source)) == text(model)

    def test_half_parts_beside_a_half_plan(self):
        """A plan for the FP32 part leaves the half part as it is."""
        source = "m (float[n] x) => (float[n] y) <float16 w = {0.1}> { [down] a = Cast <to = 10> (x) [old] b = Mul(a, w) [up] c = Cast <to = 1> (b) [new] y = Exp(c) }"
        model = lower(source, half=["new"]).model

        assert {"w": "FLOAT16"} == weights(model)
        check(model)

    def test_optional_outputs(self):
        """LayerNormalization's statistics stay float32."""
        source = "m (float[n, 2] x) => (float[n, 2] y, float[n, 1] mean) <float[2] s = {1.0, 2.0}> { [it] y, mean = LayerNormalization(x, s) }"
        model = lower(source).model

        assert [HALF, FLOAT] == [value.dtype for value in node(model, "it").outputs]
        check(model)

    def test_unused_nodes_go(self):
        """Unread nodes are removed, and so are weights that become unused."""
        model = lower("m (float[n] x) => (float[n] y) <float w = {2.0}> { [dead] z = Mul(x, w) [it] y = Neg(x) }").model

        assert "Mul" not in ops(model)
        assert {} == weights(model)

    def test_names_are_unique(self):
        """Every node and value of the result has a unique name."""
        for source in ALL:
            model = lower(source).model
            names = [each.name for each in model.graph.all_nodes()]
            assert len(set(names)) == len(names)


class TestErrors:
    """Plans that cannot be carried out."""

    def test_half_node_without_half(self):
        """A plan with an impossible half node is refused, and the hint says what to change."""
        source = "m (float[1, n, 4] b, float[1, 1, n] s) => (int64[m, 3] y) { [nms] y = NonMaxSuppression(b, s) }"
        with pytest.raises(ConversionError, match="has `nms` in half") as caught:
            lower(source, ["nms"])
        assert "`single`" in caught.value.hint

    def test_control_flow_in_half(self):
        """If itself cannot be half."""
        with pytest.raises(ConversionError, match="If does not accept fp16"):
            lower(BRANCHES, ["choose"])

    def test_unknown_precision(self):
        """A plan in another precision is refused."""
        with pytest.raises(InputError, match="`fp8`"):
            apply_plan(prepared(MLP), make_plan("fp8", []))

    def test_nodes_the_model_does_not_have(self):
        """Decisions about other nodes change nothing."""
        model = prepared(MLP)
        other = make_plan("fp16", [Decision("other", "Relu", Precision.HALF, Reason.SAFE)])

        assert text(model) == text(apply_plan(model, other).model)


class TestResults:
    """The lowered model, run."""

    @pytest.mark.parametrize("source", ALL)
    def test_is_valid_and_loads(self, source):
        """The ONNX checker passes it, and ONNX Runtime loads it."""
        model = lower(source).model

        check(model)
        with session_for(model) as session:
            assert [value.name for value in model.graph.outputs] == [spec.name for spec in session.outputs]

    @pytest.mark.parametrize("fmt", [FP16, BF16], ids=["fp16", "bf16"])
    def test_error_is_that_of_half(self, fmt):
        """The emulated half model is as far from FP32 as its format's spacing says."""
        x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
        want, got = run(prepared(MLP), {"x": x})["y"], run(widen(lower(MLP, fmt=fmt).model), {"x": x})["y"]
        error = np.linalg.norm(want - got) / np.linalg.norm(want)

        assert 0 < error < 2 * fmt.epsilon

    def test_overflow_shows(self):
        """The emulated half model overflows where half does."""
        assert [np.inf] == run(widen(lower(OVERFLOW).model), {"x": np.float32([1024])})["y"].tolist()


def test_single_inputs_and_outputs_become_half():
    """Those that are named, such as a cache; the others keep their type."""
    model = prepared(
        "two (float[n] x, float[n] cache) => (float[n] y, float[n] kept) { [a] kept = Add(cache, x)\n[b] y = Neg(kept) }"
    )
    lowered = apply_plan(model, plan(model, {"a", "b"}), half_names={"cache", "kept"}).model

    assert {"x": FLOAT, "cache": HALF, "y": FLOAT, "kept": HALF} == {
        value.name: value.dtype for value in (*lowered.graph.inputs, *lowered.graph.outputs)
    }
    check(lowered)
