"""The evidence in a plan is true."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.exporter import convert
from demi.exporter.operators.schemas import half_dtype
from demi.exporter.passes.lower import apply_plan
from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.schema_types import SchemaTypes
from demi.exporter.planning.op_list import op_list_plan
from demi.float16 import BF16, FP16
from demi.plan import Precision, Reason
from tests.models import parse

CUSTOM = '<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>'


def decisions(source, fmt=FP16):
    """The op-level plan of a model in text."""
    model = prepare(parse(source))
    SchemaTypes()(model)
    return op_list_plan(model, fmt).decisions


class TestBehindACustomOperator:
    """An unknown operand type is not reported as an operator without half."""

    def test_a_type_that_follows(self):
        """The type of one factor determines that of the other."""
        source = (
            f"{CUSTOM} m (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {{1.0, 2.0, 3.0, 4.0}}> "
            "{ [odd] b = mine.VoxelPool(x) [after] y = MatMul(b, w) }"
        )

        assert Reason.SAFE is decisions(source)["after"].reason
        assert (
            "`b` behind VoxelPool is assumed to be float32, like the other operands of MatMul"
            == decisions(source)["after"].evidence
        )
        assert Reason.UNKNOWN_OP is decisions(source)["odd"].reason

    def test_a_type_that_does_not(self):
        """The evidence names the type as unknown, and the operator before it."""
        source = (
            f"{CUSTOM} m (float[n, 2] x) => (float[n, k] y) {{ [odd] b = mine.VoxelPool(x) [next] y = Gather(x, b) }}"
        )

        assert Reason.NO_HALF_TYPE is decisions(source)["next"].reason
        assert "the type of `b` is not known behind VoxelPool" == decisions(source)["next"].evidence

    @pytest.mark.parametrize("op", ["MatMul(b, b)", "Relu(b)", "Concat <axis = 0> (b, b)"])
    def test_nothing_but_unknown_types(self, op):
        """A node without a known float operand gets no decision, rather than a wrong one."""
        source = f"{CUSTOM} m (float[n, 2] x) => (int64[k] s) {{ b = mine.VoxelPool(x) [it] c = {op} s = Shape(c) }}"

        assert "it" not in decisions(source)


class TestByAttribute:
    """Operators whose output type is given by an attribute."""

    @pytest.mark.parametrize("attribute", ["", "<value = float[1] {2.0}>"], ids=["without", "with"])
    @pytest.mark.parametrize("rest", ["[add] y = Add(x, zeros)", "[add] p = Add(x, zeros) y = Neg(p)"])
    def test_constant_of_shape_is_half(self, attribute, rest):
        """It returns half where its value is half, also for the default zero."""
        source = (
            f"m (float[n] x) => (float[n] y) {{ s = Shape(x) [it] zeros = ConstantOfShape {attribute} (s) {rest} }}"
        )
        x = np.float32([1, 2, 3])

        converted = convert(ir.to_proto(parse(source)), [{"x": x}], force_half=["ConstantOfShape", "Add"])

        onnx.checker.check_model(converted.model, full_check=True)
        assert converted.plan.is_half("it")
        (made,) = (node for node in converted.model.graph.node if node.op_type == "ConstantOfShape")
        assert onnx.TensorProto.FLOAT16 == made.attribute[0].t.data_type

    def test_random_numbers(self):
        """RandomNormal has a half type; it stays FP32, so that both precisions draw the same numbers."""
        source = "m (float[3] x) => (float[3] y) { [it] r = RandomNormal <shape = [3]> () y = Add(x, r) }"

        assert "RandomNormal draws random numbers" == decisions(source)["it"].evidence


def test_never_half_says_why():
    """An operator that stays FP32 though its schema allows half has the reason as evidence."""
    source = "m (float[n, 3] x) => (float[n, 3] y) { [it] e = EyeLike(x) y = Add(x, e) }"

    assert "EyeLike: no runtime has a half kernel for it" == decisions(source)["it"].evidence


def test_a_type_that_is_really_missing():
    """The evidence still quotes the schema."""
    source = '<ir_version: 8, opset_import: ["" : 11]> m (float[n] x) => (float[n] y) { [it] y = Relu(x) }'

    assert "Relu (opset 11) takes no bfloat16; from opset 13 on it does" == decisions(source, BF16)["it"].evidence


@pytest.mark.parametrize("fmt", [FP16, BF16], ids=["fp16", "bf16"])
def test_no_schema_is_misread(fmt):
    """If the evidence is that an operator takes no half, its schema allows half for none of its operands."""
    half = f"tensor({half_dtype(fmt).name.lower()})"
    for schema in onnx.defs.get_all_schemas():
        if schema.domain:
            continue
        source = f'<ir_version: 10, opset_import: ["" : {onnx.defs.onnx_opset_version()}]> m (float[n] x) => (float[n] y) {{ y = Neg(x) }}'
        model = parse(source)
        inputs = [model.graph.inputs[0] for _ in range(schema.min_input)]
        node = ir.node(schema.name, inputs, num_outputs=max(schema.min_output, 1), name="it")
        for value in node.outputs:
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n"])
        model.graph.append(node)
        decision = op_list_plan(model, fmt).decisions["it"]
        if "takes no" in decision.evidence:
            kinds = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
            operands = [each.type_str for each in (*schema.inputs[: schema.min_input], *schema.outputs)]
            assert not any(half in kinds.get(kind, ()) for kind in operands), decision


class TestSizes:
    """A node that reads the shape of a half tensor is not a half node."""

    SOURCE = """
    m (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {0.5, -0.5, 0.25, 1.0}>
    { [mul] a = MatMul(x, w) [ask] s = Shape(a) [count] c = Size(a) k = Cast <to = 1> (c) [act] b = Relu(a) y = Reshape(b, s) d = Neg(k) }
    """

    def test_shape_and_size_are_not_counted(self):
        """Such a node is neither among the half nodes nor in the table."""
        rows = {"x": np.ones((3, 2), np.float32)}

        plan = convert(ir.to_proto(parse(self.SOURCE)), [rows], optimize=False, force_half=["*"]).plan

        assert plan["ask"].precision is Precision.HALF
        assert not {"Shape", "Size"} & {decision.op_type for decision in plan.computing}
        assert len(plan.computing) == sum(count for _, count in plan.counts())
        assert plan.half_nodes == sum(decision.is_half for decision in plan.computing) < len(plan.decisions)

    def test_nothing_but_a_shape(self):
        """A model that only asks for a shape has no half nodes."""
        plan = convert(
            ir.to_proto(parse("m (float[n] x) => (int64[1] y) { y = Shape(x) }")), [{"x": np.float32([1])}]
        ).plan

        assert 0 == plan.half_nodes


def test_a_mask_that_was_drawn_in_lost_nothing():
    """A mask constant beyond half is replaced on purpose: no weight overflows."""
    source = """
    m (float[n, 2] x, float[n, 2] keep) => (float[n, 2] y) <float one = {1.0}, float far = {-3.0e38}>
    { flipped = Sub(one, keep) mask = Mul(flipped, far) scores = Add(x, mask) y = Softmax(scores) }
    """
    feeds = {"x": np.float32([[0.5, 0.25], [1.0, 2.0]]), "keep": np.float32([[1, 0], [1, 1]])}
    converted = convert(ir.to_proto(parse(source)), [feeds])
    assert {"far"} == set(converted.plan.masks)

    lowered = apply_plan(prepare(parse(source)), converted.plan)

    assert not lowered.losses
