"""The op-level plan: every reason it can give, each on a small model."""

import onnx_ir as ir
import pytest

from demi.exporter.operators.schemas import half_dtype
from demi.exporter.operators.tables import KEEP
from demi.exporter.passes.prepare import prepare
from demi.exporter.planning.op_list import op_list_plan
from demi.float16 import BF16, FP16
from demi.plan import Precision, Reason
from tests.models import (
    BRANCHES,
    EMBEDDING,
    LAYER_NORM,
    LOOP,
    MLP,
    RMS_NORM,
    SCAN,
    parse,
    prepared,
)


def plan(source, fmt=FP16, keep=()):
    """The op-level plan of a model in text."""
    return op_list_plan(prepared(source), fmt, keep)


def reasons(source, fmt=FP16, keep=()):
    """Each node's reason, by name."""
    return {name: decision.reason for name, decision in plan(source, fmt, keep).decisions.items()}


def reason(body, inputs="float[n] x", outputs="float[n] y", weights="", opset=20, fmt=FP16):
    """The reason of the node called `it`."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> m ({inputs}) => ({outputs}) {weights} {{ {body} }}'
    return reasons(text, fmt)["it"]


class TestSafe:
    """Nodes are half unless a rule applies."""

    def test_mlp_is_half(self):
        """MatMul, Add and Relu with ordinary weights are half."""
        assert {Reason.SAFE} == set(reasons(MLP).values())
        assert 4 == plan(MLP).half_nodes

    @pytest.mark.parametrize("op", ["Softmax", "Sigmoid", "Tanh", "Gelu", "Sqrt"])
    def test_operators_that_compute_in_single_inside(self, op):
        """The kernels of these compute in FP32 and round once."""
        assert Reason.SAFE is reason(f"[it] y = {op}(x)")

    def test_fused_layer_normalization(self):
        """LayerNormalization keeps its statistics in FP32 by itself."""
        body = "[it] y = LayerNormalization(x, scale)"

        assert Reason.SAFE is reason(body, "float[n, 2] x", "float[n, 2] y", "<float[2] scale = {1.0, 2.0}>")

    def test_nodes_without_floats_get_no_decision(self):
        """Shape arithmetic is not planned."""
        source = (
            "shapes (float[n] x) => (float[m] y) { [shape] s = Shape(x) [double] d = Add(s, s) [it] y = Expand(x, d) }"
        )

        assert ["shape", "it"] == list(plan(source).decisions)

    def test_half_parts_get_no_decision(self):
        """Parts that are half already are left alone."""
        source = "mixed (float16[n] x) => (float16[n] y) { [a] b = Exp(x) [b] y = Neg(b) }"

        assert {} == plan(source).decisions

    def test_plan_is_of_its_format(self):
        """A plan records whether it is for FP16 or BF16."""
        assert "bf16" == plan(MLP, BF16).precision
        assert ir.DataType.BFLOAT16 is half_dtype(BF16)
        assert ir.DataType.FLOAT16 is half_dtype(FP16)


class TestPinned:
    """`--keep-fp32`."""

    @pytest.mark.parametrize(
        ("pattern", "nodes"),
        [
            ("first", {"first"}),
            ("*s*", {"first", "bias", "second"}),
            ("MatMul", {"first", "second"}),
            ("none", set()),
            ("matmul", set()),
        ],
    )
    def test_by_name_glob_and_operator(self, pattern, nodes):
        """A node is pinned by its name, a glob of names, or its operator."""
        found = reasons(MLP, keep=[pattern])

        assert nodes == {name for name, why in found.items() if why is Reason.PINNED}

    def test_evidence_quotes_the_flag(self):
        """The plan says which flag it was."""
        decision = plan(MLP, keep=["second", "fir*"])["first"]

        assert (Precision.SINGLE, "--keep-fp32 fir*") == (decision.precision, decision.evidence)


class TestReasons:
    """Each reason, and the evidence for it."""

    @pytest.mark.parametrize(("source", "name"), [(BRANCHES, "choose"), (LOOP, "loop"), (SCAN, "scan")])
    def test_control_flow(self, source, name):
        """If, Loop and Scan keep the types at their border; the nodes inside have their own decisions."""
        found = reasons(source)

        assert Reason.CONTROL_FLOW is found[name]
        assert {Reason.SAFE} == {why for other, why in found.items() if other != name}

    def test_no_half_type(self):
        """An operator whose schema takes no half stays, and its opset is quoted, and the one that would do."""
        source = "det (float[2, 2] x) => (float[2, 2] y) <float s = {1.0}, uint8 z = {0}> { q = QuantizeLinear(x, s, z) [it] y = DequantizeLinear(q, s, z) }"
        old = '<ir_version: 8, opset_import: ["" : 13]>' + source

        assert Reason.NO_HALF_TYPE is reasons(old)["it"]
        assert "DequantizeLinear (opset 13) takes no float16; from opset 19 on it does" == plan(old)["it"].evidence
        assert Reason.NO_HALF_TYPE is not reasons(source)["it"]

    def test_bf16_in_an_old_opset(self):
        """Relu takes BF16 from opset 13 on."""
        assert Reason.NO_HALF_TYPE is reason("[it] y = Relu(x)", opset=12, fmt=BF16)
        assert Reason.SAFE is reason("[it] y = Relu(x)", opset=13, fmt=BF16)

    def test_unknown_operator(self):
        """A custom operator keeps its own types."""
        custom = parse(
            '<ir_version: 8, opset_import: ["" : 17, "mine" : 1]> m (float[n] x) => (float[n] y) { [it] y = mine.Secret(x) }'
        )
        decision = op_list_plan(prepare(custom), FP16)["it"]

        assert Reason.UNKNOWN_OP is decision.reason
        assert "mine::Secret has no schema that ONNX or ONNX Runtime knows" == decision.evidence

    def test_no_half_kernel(self):
        """RoiAlign's schema allows half, but no runtime computes it."""
        body = "[it] y = RoiAlign(x, rois, i)"
        inputs = "float[1, 1, 4, 4] x, float[n, 4] rois, int64[n] i"

        assert Reason.NO_HALF_KERNEL is reason(body, inputs, "float[n, 1, 1, 1] y")

    def test_overflowing_constant(self):
        """A constant beyond the range would be infinite: it is named with its value."""
        source = "m (float[n] x) => (float[n] y) <float huge = {1e5}> { [it] y = Min(x, huge) }"

        assert Reason.OVERFLOWING_CONSTANT is reasons(source)["it"]
        assert "`huge` holds 100000, beyond 65504" == plan(source)["it"].evidence
        assert Reason.SAFE is reasons(source, BF16)["it"]

    def test_overflowing_element_of_a_weight(self):
        """One element of a weight is enough."""
        assert Reason.OVERFLOWING_CONSTANT is reason("[it] y = Mul(x, w)", weights="<float[2] w = {1.0, -7e4}>")

    def test_infinity_that_is_meant(self):
        """A mask of -inf stays -inf in half."""
        model = parse("m (float[n] x) => (float[n] y) <float mask = {1.0}> { [it] y = Add(x, mask) }")
        model.graph.initializers["mask"].const_value = ir.tensor(float("-inf"), dtype=ir.DataType.FLOAT, name="mask")

        assert Reason.SAFE is op_list_plan(prepare(model), FP16)["it"].reason

    def test_vanishing_constant(self):
        """An epsilon that would become zero stays, and what it guards with it."""
        source = "m (float[n] x) => (float[n] y) <float eps = {1e-12}> { [it] y = Add(x, eps) }"

        assert Reason.VANISHING_CONSTANT is reasons(source)["it"]
        assert "`eps` is 1e-12, which is 0 in fp16" == plan(source)["it"].evidence
        assert Reason.SAFE is reasons(source, BF16)["it"]

    def test_single_elements_of_a_weight_may_vanish(self):
        """Weights have tiny elements as a matter of course."""
        assert Reason.SAFE is reason("[it] y = Mul(x, w)", weights="<float[2] w = {1.0, 1e-12}>")

    @pytest.mark.parametrize(
        ("op", "expected"),
        [
            ("ReduceMean", Reason.REDUCTION),
            ("ReduceSumSquare", Reason.REDUCTION),
            ("ReduceLogSumExp", Reason.REDUCTION),
            ("Exp", Reason.EXPONENTIAL),
            ("Log", Reason.EXPONENTIAL),
            ("Softplus", Reason.EXPONENTIAL),
        ],
    )
    def test_keep_list(self, op, expected):
        """Operators that leave half's range inside their kernels stay."""
        output = "float y" if op.startswith("Reduce") else "float[n] y"
        attributes = "<keepdims = 0>" if op.startswith("Reduce") else ""

        assert expected is reason(f"[it] y = {op} {attributes} (x)", outputs=output)

    def test_power(self):
        """A square is infinite beyond 255.9."""
        assert Reason.EXPONENTIAL is reason("[it] y = Pow(x, two)", weights="<float two = {2.0}>")

    def test_selection(self):
        """TopK ranks close scores."""
        body = "[it] y, i = TopK(x, k)"

        assert Reason.SELECTION is reason(body, outputs="float[1] y, int64[1] i", weights="<int64[1] k = {1}>")

    @pytest.mark.parametrize("op", sorted(KEEP))
    def test_every_row_says_why(self, op):
        """Every row of the keep list has a reason and words for it."""
        why, words = KEEP[op]

        assert isinstance(why, Reason)
        assert len(words) > 10


class TestCounting:
    """Positions, lengths and counts in float."""

    def test_positions(self):
        """Values computed from integers by arithmetic are counts, until another float enters."""
        source = """
        positions (int64[n] p, float[n] x) => (float[n] y)
        <float base = {0.5}>
        {
          [cast] f = Cast <to = 1> (p)
          [scale] angle = Mul(f, base)
          [wave] wave = Sin(angle)
          [apply] y = Mul(wave, x)
        }
        """
        found = reasons(source)

        assert [Reason.INTEGER_VALUED] * 3 == [found[name] for name in ("cast", "scale", "wave")]
        assert Reason.SAFE is found["apply"]
        assert "`f` is made of counts: half is exact only to 2,048" == plan(source)["cast"].evidence
        assert "`f` is made of counts: half is exact only to 256" == plan(source, BF16)["cast"].evidence

    def test_range(self):
        """A Range of floats counts, and so does what is computed from it."""
        source = (
            "m (float a, float b) => (float[n] y) <float one = {1.0}> { [range] r = Range(a, b, one) [it] y = Neg(r) }"
        )

        assert Reason.INTEGER_VALUED is reasons(source)["it"]

    def test_moved_counts_count(self):
        """A count that is reshaped is a count still."""
        source = (
            "m (int64[n] p) => (float[a, b] y) <int64[2] s = {1, -1}> { f = Cast <to = 1> (p) [it] y = Reshape(f, s) }"
        )

        assert Reason.INTEGER_VALUED is reasons(source)["it"]

    def test_mask_from_bool_does_not_count(self):
        """A cast from bool holds zeros and ones."""
        source = "m (bool[n] p, float[n] x) => (float[n] y) { [it] f = Cast <to = 1> (p) [apply] y = Mul(f, x) }"

        assert {Reason.SAFE} == set(reasons(source).values())

    def test_masks_of_integers_are_kept_to_be_safe(self):
        """An integer mask looks like a position and stays single; the product with the rows is half."""
        found = reasons(EMBEDDING)

        assert Reason.INTEGER_VALUED is found["mask"]
        assert Reason.SAFE is found["apply"]


class TestNormalization:
    """Normalizations written in primitives are fenced."""

    def test_layer_norm(self):
        """From the centring Sub to the Div that applies the root, all stays; the scale after it is half."""
        assert {
            "mean": Reason.REDUCTION,
            "centre": Reason.NORMALIZATION,
            "square": Reason.EXPONENTIAL,
            "variance": Reason.REDUCTION,
            "eps": Reason.NORMALIZATION,
            "root": Reason.NORMALIZATION,
            "divide": Reason.NORMALIZATION,
            "scale": Reason.SAFE,
        } == reasons(LAYER_NORM)

    def test_rms_norm(self):
        """From the square to the Mul that applies the inverse root, all stays."""
        assert {
            "square": Reason.NORMALIZATION,
            "mean": Reason.REDUCTION,
            "eps": Reason.NORMALIZATION,
            "root": Reason.NORMALIZATION,
            "inverse": Reason.NORMALIZATION,
            "apply": Reason.NORMALIZATION,
            "scale": Reason.SAFE,
        } == reasons(RMS_NORM)

    def test_rms_norm_with_a_division(self):
        """1 / root is a reciprocal as well."""
        source = RMS_NORM.replace("Reciprocal(root)", "Div(one, root)").replace(
            "<int64[1] last", "<float one = {1.0}, int64[1] last"
        )
        found = reasons(source)

        assert [Reason.NORMALIZATION] * 2 == [found["inverse"], found["apply"]]
        assert Reason.SAFE is found["scale"]

    def test_reduction_that_normalizes_nothing(self):
        """A pooled mean fences only itself."""
        source = "pool (float[n, 4] x) => (float[n, 4] y) <int64[1] last = {-1}> { [mean] m = ReduceMean(x, last) [back] y = Add(x, m) }"

        assert {"mean": Reason.REDUCTION, "back": Reason.SAFE} == reasons(source)
