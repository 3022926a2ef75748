"""The emulator: half arithmetic on a machine that does not have it."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from demi.calibration.emulation.widen import EXACT_OPS, rounding_casts, widen
from demi.errors import ConversionError
from demi.float16 import BF16, FP16, round_through
from tests.models import (
    BRANCHES,
    LOOP,
    MLP,
    SCAN,
    check,
    in_half,
    parse,
    prepared,
    run,
    text,
)

HALF_OVERFLOW = """
half_overflow (float[n] x) => (float[n] y)
<float16 hundred = {100.0}, float16 small = {0.001}>
{
  narrow = Cast <to = 10> (x)
  big = Mul(narrow, hundred)
  less = Mul(big, small)
  y = Cast <to = 1> (less)
}
"""
"""x = 1,024 gives 102,400 in the middle, which is infinite in half."""


def half_model(body, *, inputs="float16[n] x", output="float16[n] y", weights=""):
    """Return a model that computes in half throughout."""
    return parse(f"half ({inputs}) => ({output}) {weights} {{ {body} }}")


def optimized_graph(model, tmp_path):
    """Return the graph that ONNX Runtime runs after its optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(text(model), options, providers=["CPUExecutionProvider"])
    return ir.load(tmp_path / "optimized.onnx")


class TestOverflow:
    """Overflow that ONNX Runtime's CPU kernels hide."""

    def test_intermediate_beyond_half_is_infinite(self):
        """102,400 in the middle becomes infinite, as it does on a GPU."""
        assert [np.inf] == run(widen(parse(HALF_OVERFLOW)), {"x": np.float32([1024])})["y"].tolist()

    def test_onnx_runtime_hides_the_overflow(self):
        """ONNX Runtime on a CPU computes the same model in FP32 and returns a finite number."""
        assert [pytest.approx(102.4, rel=1e-2)] == run(parse(HALF_OVERFLOW), {"x": np.float32([1024])})["y"].tolist()

    def test_bf16_does_not_overflow(self):
        """BF16 has float32's range, so that 102,400 is finite."""
        bf16 = HALF_OVERFLOW.replace("float16", "bfloat16").replace("to = 10", "to = 16")
        expected = ml_dtypes.bfloat16(102400) * ml_dtypes.bfloat16(0.001)

        assert [float(expected)] == run(widen(parse(bf16)), {"x": np.float32([1024])})["y"].tolist()

    def test_small_numbers_vanish(self):
        """A product below the smallest subnormal is zero."""
        model = half_model("y = Mul(x, x)")

        assert [0.0] == run(widen(model), {"x": np.float16([1e-4])})["y"].tolist()


class TestArithmetic:
    """Every rounding is that of native half arithmetic."""

    @pytest.mark.parametrize(
        ("op", "numpy_op"), [("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.divide)]
    )
    def test_binary_operators(self, op, numpy_op, half_pairs):
        """Binary operators equal NumPy's half arithmetic bit for bit."""
        model = half_model(f"y = {op}(a, b)", inputs="float16[n] a, float16[n] b")
        a, b = half_pairs
        with np.errstate(all="ignore"):
            expected = numpy_op(a, b)

        np.testing.assert_array_equal(expected, run(widen(model), {"a": a, "b": b})["y"].astype(np.float16))

    def test_square_root(self, half_pairs):
        """Sqrt equals NumPy's half arithmetic bit for bit."""
        values = np.abs(half_pairs[0])

        got = run(widen(half_model("y = Sqrt(x)")), {"x": values})["y"]

        np.testing.assert_array_equal(np.sqrt(values), got.astype(np.float16))

    @settings(max_examples=30, deadline=None)
    @given(
        steps=st.lists(st.sampled_from(["Add", "Sub", "Mul", "Div", "Sqrt"]), min_size=1, max_size=6),
        values=hnp.arrays(np.uint16, 8).map(lambda bits: bits.view(np.float16)),
    )
    def test_chains(self, steps, values):
        """A chain of operators equals NumPy's float16 arithmetic bit for bit: each value is rounded exactly once."""
        numpy_ops = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
        body, expected, last = "", values, "x"
        with np.errstate(all="ignore"):
            for index, step in enumerate(steps):
                following = "y" if index == len(steps) - 1 else f"v{index}"
                body += f"{following} = {step}({last}{'' if step == 'Sqrt' else ', x'}) "
                expected = np.sqrt(expected) if step == "Sqrt" else numpy_ops[step](expected, values)
                last = following

        got = run(widen(half_model(body)), {"x": values})["y"]

        np.testing.assert_array_equal(expected, got.astype(np.float16))

    def test_bf16(self):
        """BF16 products equal those of ml_dtypes."""
        model = parse(
            "wide (float[n] x) => (float[n] y) { a = Cast <to = 16> (x) b = Mul(a, a) y = Cast <to = 1> (b) }"
        )
        x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
        narrow = x.astype(ml_dtypes.bfloat16)

        np.testing.assert_array_equal((narrow * narrow).astype(np.float32), run(widen(model), {"x": x})["y"])

    def test_matmul_accumulates_in_single(self):
        """MatMul accumulates in single: the sum of 4,096 ones is 4,096, not 2,048."""
        model = half_model(
            "y = MatMul(x, w)", inputs="float16[1, 4096] x, float16[4096, 1] w", output="float16[1, 1] y"
        )
        ones = np.ones((1, 4096), np.float16)

        assert 4096.0 == run(widen(model), {"x": ones, "w": ones.T})["y"].item()

    def test_half_weights_are_widened_exactly(self):
        """Widening a half weight is exact."""
        model = half_model("y = Mul(x, w)", weights="<float16 w = {0.1}>")

        (weight,) = widen(model).graph.initializers.values()

        assert float(np.float16(0.1)) == weight.const_value.numpy().item()
        assert np.float32 == weight.const_value.numpy().dtype

    @pytest.mark.parametrize(("name", "fmt"), [("float16", FP16), ("bfloat16", BF16)])
    def test_typed_constants_are_widened(self, name, fmt):
        """A ConstantOfShape of type half becomes the same number in float32."""
        model = parse(
            f"constant (int64[1] shape) => (float[?] y) {{ a = ConstantOfShape <value: tensor = {name}[1] {{0.1}}> (shape) y = Cast <to = 1> (a) }}"
        )
        expected = round_through(np.float32([0.1, 0.1]), fmt)

        np.testing.assert_array_equal(expected, run(widen(model), {"shape": np.array([2])})["y"])


@pytest.fixture
def half_pairs():
    """Return two long arrays of all kinds of halves: subnormals, infinities and NaNs among them."""
    bits = np.random.default_rng(0).integers(0, 2**16, (2, 20_000), dtype=np.uint16)
    return bits.view(np.float16)


class TestWhereItRounds:
    """Each computed value is rounded exactly once."""

    @pytest.mark.parametrize(
        "body",
        [
            "y = Relu(x)",
            "y = Neg(x)",
            "y = Abs(x)",
            "y = Identity(x)",
            "y = Max(x, x)",
            "y = Concat <axis = 0> (x, x)",
        ],
    )
    def test_exact_operators_are_not_rounded(self, body):
        """Operators that return one of their inputs are not rounded."""
        assert 0 == rounding_casts(widen(half_model(body, output="float16[m] y")))

    @pytest.mark.parametrize("body", ["y = Exp(x)", "y = Add(x, x)", "y = Softmax(x)", "a = Exp(x) y = Relu(a)"])
    def test_others_are_rounded_once(self, body):
        """A computed value is rounded where it is made, once for all readers."""
        assert 1 == rounding_casts(widen(half_model(body)))

    def test_shared_value_is_rounded_once(self):
        """Two readers share one rounding."""
        assert 2 == rounding_casts(widen(half_model("a = Exp(x) b = Relu(a) c = Neg(a) y = Add(b, c)")))

    @pytest.mark.parametrize(("reduction", "rounds"), [("none", False), ("max", False), ("add", True), ("mul", True)])
    def test_scatter_that_computes_is_rounded(self, reduction, rounds):
        """ScatterND is exact unless it adds or multiplies."""
        body = f'y = ScatterND <reduction = "{reduction}"> (x, at, updates)'
        inputs = "float16[n] x, int64[1, 1] at, float16[1] updates"

        assert rounds == bool(rounding_casts(widen(half_model(body, inputs=inputs))))

    def test_custom_operator_of_an_exact_name_is_rounded(self):
        """A Relu of another domain is rounded, because it may compute anything."""
        model = ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]> m (float16[n] x) => (float16[n] y) { y = mine.Relu(x) }'
        )

        assert 1 == rounding_casts(widen(model))

    @pytest.mark.parametrize("op", sorted(EXACT_OPS))
    def test_exact_operators_exist(self, op):
        """Every row of the table is an ONNX operator."""
        assert op == onnx.defs.get_schema(op).name

    def test_fp32_models_are_not_changed(self):
        """A model without half is not changed."""
        for source in (MLP, BRANCHES, LOOP, SCAN):
            assert text(prepared(source)) == text(widen(prepared(source)))

    @pytest.mark.parametrize("number", [10, 16], ids=["fp16", "bf16"])
    def test_runtime_keeps_every_rounding(self, number, tmp_path):
        """The graph that ONNX Runtime runs after its optimizations has as many casts to half as the emulator wrote."""
        body = "".join(f"v{i + 1} = {op}(v{i}, v{max(i - 1, 0)}) " for i, op in enumerate(["Add", "Mul", "MatMul"] * 3))
        model = widen(
            parse(
                f"kept (float[4, 4] x) => (float[4, 4] y) {{ v0 = Cast <to = {number}> (x) {body} s = Softmax(v9) y = Cast <to = 1> (s) }}"
            )
        )

        assert 11 == rounding_casts(model)
        assert 11 == rounding_casts(optimized_graph(model, tmp_path))


class TestSubgraphs:
    """If, Loop and Scan."""

    @pytest.mark.parametrize("source", [BRANCHES, LOOP, SCAN], ids=["If", "Loop", "Scan"])
    def test_half_bodies(self, source):
        """Subgraphs in half are widened with their inputs and outputs, and equal NumPy's results."""
        model = parse(in_half(source))
        feeds = {"x": np.float16([[0.1, 0.2], [0.3, 0.4]] if source is SCAN else [0.1, 0.2, 0.3])}
        if source is BRANCHES:
            feeds["flag"] = np.array(True)
        widened = widen(model)

        check(widened)
        assert rounding_casts(widened) >= 2
        for name, answer in run(widened, feeds).items():
            assert np.float32 == answer.dtype
            np.testing.assert_array_equal(answer, answer.astype(np.float16).astype(np.float32), err_msg=name)

    def test_rounding_inside_a_branch(self):
        """1 + 2^-11 is 1 in half, inside a branch as well."""
        model = parse(in_half(BRANCHES.replace("{2.0}", "{0.00048828125}")))

        got = run(widen(model), {"flag": np.array(True), "x": np.float16([2048.0])})["y"]

        assert [1.0] == got.tolist()


class TestInputsAndOutputs:
    """Inputs and outputs of the widened model."""

    def test_half_inputs_stay_half(self):
        """A half input stays half; a half output becomes float32."""
        model = widen(half_model("y = Add(x, x)"))

        assert [ir.DataType.FLOAT16] == [value.dtype for value in model.graph.inputs]
        assert [ir.DataType.FLOAT] == [value.dtype for value in model.graph.outputs]

    def test_names_stay(self):
        """Inputs and outputs keep their names and order."""
        model = widen(half_model("a = Exp(x) b = Add(a, x)", output="float16[n] b, float16[n] a"))

        assert ["x"] == [value.name for value in model.graph.inputs]
        assert ["b", "a"] == [value.name for value in model.graph.outputs]
        check(model)

    def test_output_that_others_read(self):
        """An output that other nodes read is rounded for both."""
        answers = run(
            widen(half_model("a = Mul(x, x) b = Sub(a, x)", output="float16[n] a, float16[n] b")),
            {"x": np.float16([0.1])},
        )
        expected = np.float16(0.1) * np.float16(0.1)

        assert [float(expected)] == answers["a"].tolist()
        assert [float(expected - np.float16(0.1))] == answers["b"].tolist()

    def test_input_that_is_an_output(self):
        """An input that is also an output keeps its name."""
        model = widen(half_model("y = Exp(x)", output="float16[n] y, float16[n] x"))

        assert {"y", "x"} == set(run(model, {"x": np.float16([0.5])}))

    def test_names_that_the_emulator_uses(self):
        """A model that already uses the emulator's names stays valid."""
        body = "x_half = Exp(x) x_wide = Add(x_half, x) x_half_half = Exp(x_wide) x_half_rounded = Mul(x_half_half, x_half) "
        model = widen(half_model(body, output="float16[n] x_half_rounded, float16[n] x_half"))

        check(model)
        assert ["x_half_rounded", "x_half"] == list(run(model, {"x": np.float16([0.5])}))

    def test_the_mixed_model_is_not_changed(self):
        """The mixed model is not changed, not even a type."""
        for source in (HALF_OVERFLOW, in_half(LOOP)):
            model = parse(source)
            before = text(model)

            widen(model)

            assert before == text(model)

    def test_sequences(self):
        """A sequence of half tensors becomes one of float32 tensors."""
        model = prepared(
            "seq (float16[n] x) => (float16[n] y) <int64 one = {1}> { a = Exp(x) s = SequenceConstruct(x, a) b = SequenceAt(s, one) y = Mul(b, b) }"
        )

        got = run(widen(model), {"x": np.float16([0.3])})["y"]

        assert [float(np.exp(np.float32(np.float16(0.3))).astype(np.float16) ** 2)] == got.tolist()

    def test_casts_between_types(self):
        """A cast to an integer is kept; a cast back to half is rounded like any value."""
        widened = widen(half_model("whole = Cast <to = 7> (x) back = Cast <to = 10> (whole) y = Identity(back)"))

        assert [2048.0, 2.0] == run(widened, {"x": np.float16([2049.0, 2.75])})["y"].tolist()
        assert 1 == rounding_casts(widened)

    def test_unknown_type(self):
        """A tensor without a type is rounded, because it might be half."""
        model = ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]> m (float16[n] x) => (float16[n] y)'
            "{ a = mine.Secret(x) y = Exp(a) }"
        )
        with pytest.raises(ConversionError, match="the type of `a` cannot be inferred"):
            widen(model)
