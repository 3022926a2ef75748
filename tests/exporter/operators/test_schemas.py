"""Operands of a node that may be half, by the ONNX schemas and not by a list kept by hand."""

import onnx_ir as ir
import pytest

from demi.exporter.operators import schemas
from demi.exporter.operators.schemas import (
    Operands,
    find_schema,
    half_operands,
    opset_version,
    touches_float,
)
from tests.models import node, parse, prepared

FP16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def operands(text, half=FP16, name="it"):
    """The operands of the node called `it` that may be half, as (inputs, outputs)."""
    model = prepared(text)
    found = half_operands(node(model, name), opset_version(node(model, name), model), half)
    return set(found.inputs), set(found.outputs)


def model(body, inputs="float[n] x", outputs="float[n] y", opset=20, weights=""):
    return f'<ir_version: 8, opset_import: ["" : {opset}]> m ({inputs}) => ({outputs}) {weights} {{ [it] {body} }}'


class TestTypeVariables:
    """Operands that share a variable move together."""

    def test_all_operands_of_one_variable(self):
        """MatMul's inputs and output are one T."""
        body = model("y = MatMul(a, b)", "float[2, 2] a, float[2, 2] b", "float[2, 2] y")

        assert ({0, 1}, {0}) == operands(body)

    def test_integers_stay(self):
        """Gather's indices have a variable of their own, without float."""
        assert ({0}, {0}) == operands(model("y = Gather(x, i)", "float[n] x, int64[m] i", "float[m] y"))

    def test_condition_stays(self):
        """Where's condition is boolean."""
        assert ({1, 2}, {0}) == operands(model("y = Where(c, x, x)", "bool[n] c, float[n] x"))

    def test_operands_left_out(self):
        """Operands that are not given count for nothing."""
        assert ({0, 2}, {0}) == operands(model("y = Clip(x, , high)", "float[n] x, float high"))

    def test_variadic(self):
        """Concat takes any number of inputs of one variable."""
        body = model("y = Concat <axis = 0> (x, x, x)", outputs="float[m] y")

        assert ({0, 1, 2}, {0}) == operands(body)

    def test_layer_normalization_keeps_its_statistics(self):
        """Mean and inverse deviation have type variable U, which excludes FP16: they stay float32. In BF16 they could be either."""
        text = model(
            "y, mean, dev = LayerNormalization(x, scale)",
            "float[n, 4] x, float[4] scale",
            "float[n, 4] y, float[n, 1] mean, float[n, 1] dev",
        )

        assert ({0, 1}, {0}) == operands(text)
        assert (set(), set()) == operands(text, BF16)

    def test_resize_keeps_its_geometry(self):
        """Only the image of a Resize may be half: `roi` and `scales` say where to look."""
        text = model(
            'y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, roi, scales)',
            "float[1, 1, 4, 4] x, float[8] roi, float[4] scales",
            "float[a, b, c, d] y",
        )

        assert ({0}, {0}) == operands(text)

    def test_batch_normalization_has_three_variables(self):
        """Each of its variables allows half."""
        text = model(
            "y = BatchNormalization(x, s, b, m, v)",
            "float[n, 2] x, float[2] s, float[2] b, float[2] m, float[2] v",
            "float[n, 2] y",
        )

        assert ({0, 1, 2, 3, 4}, {0}) == operands(text)

    def test_half_parts_are_not_asked_about(self):
        """Operands that are half already are none of the plan's business."""
        assert (set(), set()) == operands(model("y = Relu(x)", "float16[n] x", "float16[n] y"))


class TestTypeByAttribute:
    """Operators whose output type is given by an attribute."""

    def test_cast_between_floats(self):
        """Input and output of a Cast have variables of their own, and both allow half."""
        assert ({0}, {0}) == operands(model("y = Cast <to = 1> (x)"))

    def test_cast_of_integers(self):
        """Only the output can be half."""
        assert (set(), {0}) == operands(model("y = Cast <to = 1> (x)", "int64[n] x"))

    def test_cast_to_integers(self):
        """Only the input can be half."""
        assert ({0}, set()) == operands(model("y = Cast <to = 7> (x)", outputs="int64[n] y"))

    def test_constant_of_shape(self):
        """Its value names the type."""
        text = model("y = ConstantOfShape <value: tensor = float[1] {1.0}> (s)", "int64[1] s")

        assert (set(), {0}) == operands(text)

    def test_constant_of_shape_without_a_value(self):
        """Without a value it makes float32 zeros and cannot be half."""
        assert (set(), set()) == operands(model("y = ConstantOfShape(s)", "int64[1] s"))

    def test_random_normal_stays(self):
        """An operator whose output type nothing binds stays in FP32."""
        assert (set(), set()) == operands(model("y = RandomNormal <shape = [2]> ()", outputs="float[2] y"))


class TestNone:
    """Nodes that cannot be half."""

    def test_operator_without_half(self):
        """NonMaxSuppression takes float32 alone."""
        text = model("y = NonMaxSuppression(b, s)", "float[1, n, 4] b, float[1, 1, n] s", "int64[m, 3] y")

        assert (set(), set()) == operands(text)

    def test_unknown_operator(self):
        """An operator of an unknown domain has no schema."""
        custom = ir.from_onnx_text(
            '<ir_version: 8, opset_import: ["" : 20, "mine" : 1]> m (float[n] x) => (float[n] y) { y = mine.Relu(x) }'
        )

        assert not half_operands(custom.graph[0], 1, FP16)
        assert find_schema("Relu", "mine", 1) is None

    def test_control_flow(self):
        """If keeps the types at its border."""
        text = model(
            "y = If (c) <then_branch = a () => (float[n] p) { p = Neg(x) }, else_branch = b () => (float[n] q) { q = Abs(x) }>",
            "bool c, float[n] x",
        )

        assert (set(), set()) == operands(text)

    @pytest.mark.parametrize(
        ("body", "outputs"),
        [
            ("s = SequenceConstruct(x, x) y = SequenceAt(s, at)", "float[n] y"),
            ("s = SplitToSequence(x) y = ConcatFromSequence <axis = 0> (s)", "float[m] y"),
            ("e = SequenceEmpty() s = SequenceInsert(e, x) y = SequenceAt(s, at)", "float[n] y"),
        ],
    )
    def test_sequences(self, body, outputs):
        """A sequence keeps the type of its tensors, and so do the tensors put in and taken out."""
        made = prepared(f"m (float[n] x) => ({outputs}) <int64 at = {{0}}> {{ {body} }}")

        assert [] == [each.op_type for each in made.graph if half_operands(each, 20, FP16)]


class TestOpsets:
    """The types that schemas allow depend on the opset."""

    @pytest.mark.parametrize(
        ("op", "opset", "allowed"), [("Relu", 12, False), ("Relu", 13, True), ("Round", 20, False), ("Round", 22, True)]
    )
    def test_bf16_came_later(self, op, opset, allowed):
        """BF16 came operator by operator."""
        text = model(f"y = {op}(x)", opset=opset)

        assert allowed is bool(operands(text, BF16)[0])
        assert ({0}, {0}) == operands(text, FP16)

    def test_version_of_the_model(self):
        """A node's version is the one its model imports."""
        imported = parse(model("y = Relu(x)", opset=14))

        assert 14 == opset_version(imported.graph[0], imported)

    def test_domain_the_model_does_not_import(self):
        """Version 0 of an operator has no schema."""
        assert find_schema("Relu", "", 0) is None

    def test_default_domain_has_two_names(self):
        """`ai.onnx` is the default domain."""
        assert find_schema("Relu", "ai.onnx", 14) is find_schema("Relu", "", 14) or (
            find_schema("Relu", "ai.onnx", 14).since_version == find_schema("Relu", "", 14).since_version
        )


def test_no_operands_is_falsy():
    """A node without half operands cannot be half."""
    assert not schemas.NONE
    assert Operands(frozenset({0}), frozenset())


@pytest.mark.parametrize(
    ("text", "touches"),
    [
        (model("y = Relu(x)"), True),
        (model("y = Cast <to = 7> (x)", outputs="int64[n] y"), True),
        (model("y = Add(x, x)", "int64[n] x", "int64[n] y"), False),
        (model("y = Relu(x)", "float16[n] x", "float16[n] y"), False),
    ],
)
def test_touching_float(text, touches):
    """Only nodes with a float32 operand are planned."""
    assert touches is touches_float(node(prepared(text), "it"))
