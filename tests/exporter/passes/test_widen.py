"""Widening: a source whose weights are half is planned anew from FP32, which holds each of them exactly."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.calibration.sessions import session_for
from demi.cli.main import main
from demi.exporter import convert
from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.widen import widen_source
from tests.models import check

TYPES = {"FP16": (onnx.TensorProto.FLOAT16, np.float16), "BF16": (onnx.TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def source(name: str, public: bool) -> onnx.ModelProto:
    """A product with half weights; with `public`, its input and output are half as well."""
    number, numpy = TYPES[name]
    half = "float16" if name == "FP16" else "bfloat16"
    if public:
        model = onnx.parser.parse_model(
            f"{HEADER}m ({half}[n, 4] x) => ({half}[n, 3] y) {{ a = MatMul(x, w) y = Relu(a) }}"
        )
    else:
        casts = f"h = Cast <to = {number}> (x) a = MatMul(h, w) y = Cast <to = 1> (a)"
        model = onnx.parser.parse_model(f"{HEADER}m (float[n, 4] x) => (float[n, 3] y) {{ {casts} }}")
    model.graph.initializer.append(onnx.helper.make_tensor("w", number, W.shape, W.astype(numpy).tobytes(), raw=True))
    return model


def inner_types(model: ir.Model) -> set[ir.DataType]:
    """The types of weights and inner tensors."""
    inner = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    return {value.dtype for value in (*inner, *model.graph.initializers.values())}


@pytest.mark.parametrize("public", [True, False], ids=["half border", "float border"])
@pytest.mark.parametrize("name", ["FP16", "BF16"])
class TestWhatComesOut:
    """Weights, tensors, types at the border and words."""

    def test_weights_are_the_same_numbers(self, name, public):
        """Nothing inside is half, and no weight is another than it was."""
        model = prepare(widen_source(ir.from_proto(source(name, public))).model)

        assert {ir.DataType.FLOAT} == inner_types(model)
        np.testing.assert_array_equal(
            W.astype(TYPES[name][1]).astype(np.float32), model.graph.initializers["w"].const_value.numpy()
        )
        check(model)

    def test_border(self, name, public):
        """FP16 inputs and outputs stay; bfloat16 ones, which clients lack, are FP32."""
        model = widen_source(ir.from_proto(source(name, public))).model
        kept = ir.DataType.FLOAT16 if name == "FP16" and public else ir.DataType.FLOAT

        assert [("x", kept), ("y", kept)] == [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)]

    def test_it_computes_in_fp32(self, name, public):
        """The result is that of the exact weights in FP32."""
        widened = prepare(widen_source(ir.from_proto(source(name, public))).model)
        with session_for(widened) as session:
            x = X.astype(session.inputs[0].dtype.numpy)
            got = session.run({"x": x})["y"]

        exact = x.astype(np.float32) @ W.astype(TYPES[name][1]).astype(np.float32)
        np.testing.assert_allclose(np.maximum(exact, 0) if public else exact, got, rtol=2e-3, atol=2e-3)

    def test_words(self, name, public):
        """The notes name the old type of the weights, and the inputs and outputs that changed."""
        widened = widen_source(ir.from_proto(source(name, public)))

        assert (name,) == widened.half_types
        assert f"the weights are {name} in the source" in widened.notes[0]
        assert (
            ["`x` and `y` are BF16 in the source, and FP32 in the bundle"] if public and name == "BF16" else []
        ) == [*widened.notes[1:]]

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_convert(self, name, public, precision):
        """A plan in either half format stays within the budget, from samples of any float type."""
        converted = convert(source(name, public), [{"x": X.astype(ml_dtypes.bfloat16)}], precision=precision)

        assert converted.plan.half_nodes
        assert converted.comparison


def test_the_source_is_left_alone():
    """The model that is given stays as it was."""
    model = ir.from_proto(source("FP16", public=True))
    before = ir.to_proto(model).SerializeToString()
    widen_source(model)

    assert before == ir.to_proto(model).SerializeToString()


def test_weights_in_other_files_stay_there(tmp_path):
    """External weights are widened when they are read, and written like any other."""
    onnx.save(source("FP16", public=False), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = widen_source(ir.load(tmp_path / "m.onnx")).model
    tensor = model.graph.initializers["w"].const_value

    assert isinstance(tensor, ir.LazyTensor)
    assert (ir.DataType.FLOAT, 48) == (tensor.dtype, tensor.nbytes)
    np.testing.assert_array_equal(W.astype(np.float16).astype(np.float32), tensor.numpy())
    check(prepare(model))


def test_fp32_models_are_handed_back():
    """A model that rounds through half by design is returned as it is, too: a single number is not a weight."""
    rounding = "m (float[n] x) => (float[n] y) { h = Cast <to = 10> (x) k = Constant <value = float16 {16384}> () a = Mul(h, k) y = Cast <to = 1> (a) }"
    model = ir.from_onnx_text(HEADER + rounding)

    assert model is widen_source(model).model


def test_bodies_and_typed_constants():
    """Types in the bodies of control flow and in attributes follow."""
    text = """m (float16[n] x, bool b) => (float16[n] y) <float16[2] w = {15360, 16384}> {
      [if] c = If (b) <then_branch = t () => (float16[n] p) { p = Mul(x, w) },
                       else_branch = e () => (float16[n] q) { s = Shape(x) z = ConstantOfShape <value = float16[1] {16896}> (s) q = Add(z, x) }>
      y = Relu(c) }"""
    model = prepare(widen_source(ir.from_onnx_text(HEADER + text)).model)
    with session_for(model) as session:
        got = session.run({"x": np.float16([1, 2]), "b": np.array(False)})["y"]

    assert not [n for n in model.graph.all_nodes() if n.op_type != "Cast" and n.outputs[0].dtype is ir.DataType.FLOAT16]
    assert [4.0, 5.0] == got.tolist()


def test_an_input_that_is_given_back():
    """An output that is an FP16 input itself keeps both names."""
    text = "m (float16[n] x) => (float16[n] x, float16[n] y) <float16[2] w = {15360, 16384}> { y = Mul(x, w) }"
    model = widen_source(ir.from_onnx_text(HEADER + text)).model

    assert ["x", "y"] == [value.name for value in model.graph.outputs]
    check(prepare(model))


def test_the_command_says_so(tmp_path, monkeypatch, capsys):
    """`demi export` of a bfloat16 file: a title with what it was, and notes."""
    monkeypatch.chdir(tmp_path)
    onnx.save(source("BF16", public=True), "m.onnx")
    np.savez("s.npz", x=X.astype(ml_dtypes.bfloat16))

    code = main(["export", "--fp16", "m.onnx", "--sample", "s.npz", "--no-report"])
    out, err = capsys.readouterr()

    assert 0 == code
    assert "m: BF16 -> mixed fp16" in out
    assert "note: the weights are BF16 in the source" in err
    assert "note: `x` and `y` are BF16 in the source, and FP32 in the bundle" in err
