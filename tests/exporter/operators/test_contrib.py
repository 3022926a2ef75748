"""Operators of ONNX Runtime's own domain: their types come from the runtime's schemas, and they go the whole road."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.calibration.emulation.widen import widen
from demi.calibration.sessions import session_for
from demi.exporter.api import convert
from demi.exporter.operators.schemas import find_schema, half_operands
from demi.exporter.passes.fill_types import fill_types
from demi.tensors import Feeds
from tests.models import parse, prepared

FP16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def contrib(body: str, inputs: str, outputs: str, weights: str = "") -> str:
    """A model in text that may use `com.microsoft`; the last node makes `y`."""
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    m ({inputs}) => ({outputs}) {weights} {{ {body} }}"""


X = "float[2, 3, 8] x"
Y = "float[2, 3, 8] y"
EIGHT = "float[8] g = {1, 1.1, 0.9, 1, 1.2, 0.8, 1, 1}, float[8] b = {0, 0.1, 0, -0.1, 0, 0.2, 0, 0}"
MS = "com.microsoft."

OPERATORS = {
    "FusedMatMul": contrib(f"[it] y = {MS}FusedMatMul <transB = 1, alpha = 0.5> (x, x)", X, "float[2, 3, 3] y"),
    "Gelu": contrib(f"[it] y = {MS}Gelu(x)", X, Y),
    "FastGelu": contrib(f"[it] y = {MS}FastGelu(x, b)", X, Y, f"<{EIGHT}>"),
    "BiasGelu": contrib(f"[it] y = {MS}BiasGelu(x, b)", X, Y, f"<{EIGHT}>"),
    "QuickGelu": contrib(f"[it] y = {MS}QuickGelu(x)", X, Y),
    "SkipLayerNormalization": contrib(
        f"[it] y, m, v, s = {MS}SkipLayerNormalization(x, x, g, b) ", X, f"{Y}, float[2, 3, 8] s", f"<{EIGHT}>"
    ),
    "SkipSimplifiedLayerNormalization": contrib(
        f"[it] y = {MS}SkipSimplifiedLayerNormalization(x, x, g)", X, Y, f"<{EIGHT}>"
    ),
    "SimplifiedLayerNormalization": contrib("[it] y = SimplifiedLayerNormalization(x, g)", X, Y, f"<{EIGHT}>"),
    "MultiHeadAttention": contrib(f"[it] y = {MS}MultiHeadAttention <num_heads = 2> (x, x, x)", X, Y),
    "Attention": contrib(
        f"k = Tile(g, times) w = Reshape(k, shape) [it] y = {MS}Attention <num_heads = 2> (x, w, bias)",
        X,
        Y,
        f"<{EIGHT}, int64[1] times = {{24}}, int64[2] shape = {{8, 24}}, float[24] bias = "
        f"{{{', '.join(['0.1', '-0.2', '0.3'] * 8)}}}>",
    ),
    "RotaryEmbedding": contrib(
        f"[it] y = {MS}RotaryEmbedding <num_heads = 2> (x, at, cosine, sine)",
        f"{X}, int64[2, 3] at",
        Y,
        "<float[3, 2] cosine = {1, 1, 0.5, 0.9, 0.3, 0.8}, float[3, 2] sine = {0, 0, 0.8, 0.4, 0.9, 0.6}>",
    ),
    "EmbedLayerNormalization": contrib(
        f"[it] y, i = {MS}EmbedLayerNormalization(ids, , words, places, , g, b)",
        "int32[2, 3] ids",
        Y,
        f"<{EIGHT}, float[4, 8] words = {{{', '.join(f'{0.1 * (i % 7) - 0.2:.2g}' for i in range(32))}}}, "
        f"float[4, 8] places = {{{', '.join(f'{0.1 * (i % 5) - 0.3:.2g}' for i in range(32))}}}>",
    ),
}
"""One model for each operator; the node called `it` is the one."""


def feeds_for(model: ir.Model) -> Feeds:
    """Normal numbers and small ids."""
    rng = np.random.default_rng(0)
    return {
        value.name or "": rng.standard_normal(value.shape.numpy()).astype(np.float32)
        if value.dtype is ir.DataType.FLOAT
        else rng.integers(0, 3, value.shape.numpy()).astype(value.dtype.numpy())
        for value in model.graph.inputs
        if value.shape is not None and value.dtype is not None
    }


@pytest.mark.parametrize("text", OPERATORS.values(), ids=OPERATORS)
def test_the_operator_is_half_and_runs(text: str):
    """The node is half, ONNX Runtime loads and runs the mixed model, and its answers are those of FP32 within a hundredth."""
    model = parse(text)
    feeds = feeds_for(model)

    done = convert(ir.to_proto(model), [feeds], force_half=["it"])

    assert done.plan["it"].is_half
    with session_for(model) as single, session_for(ir.from_proto(done.model)) as mixed:
        for name, want in single.run(feeds).items():
            np.testing.assert_allclose(want, mixed.run(feeds)[name], atol=1e-2 * np.abs(want).max())


@pytest.mark.parametrize("text", OPERATORS.values(), ids=OPERATORS)
def test_the_emulator_rounds_what_it_stores(text: str):
    """Under the emulator every output of the node is a number that half holds, and not FP32's own."""
    model = parse(text)
    feeds = feeds_for(model)
    mixed = ir.from_proto(convert(ir.to_proto(model), [feeds], force_half=["it"]).model)

    with session_for(model) as single, session_for(widen(mixed)) as emulated:
        want, got = single.run(feeds)["y"], emulated.run(feeds)["y"]

    np.testing.assert_array_equal(got, got.astype(np.float16).astype(np.float32))
    assert not np.array_equal(want, got)


def operands(text: str, half: ir.DataType = FP16) -> tuple[set[int], set[int]]:
    """The operands of `it` that may be half."""
    model = prepared(text)
    fill_types(model)
    (it,) = (node for node in model.graph if node.name == "it")
    found = half_operands(it, 1, half)
    return set(found.inputs), set(found.outputs)


def test_statistics_of_a_skip_normalization_stay_single():
    """Mean and inverse deviation have a type variable of their own, which is float alone: the kernel computes them so."""
    text = contrib(
        f"[it] y, m, v, s = {MS}SkipLayerNormalization(x, x, g, b)",
        X,
        f"{Y}, float[2, 3, 1] m, float[2, 3, 1] v, float[2, 3, 8] s",
        f"<{EIGHT}>",
    )

    assert ({0, 1, 2, 3}, {0, 3}) == operands(text)


def test_sums_beyond_half_inside_a_skip_normalization_are_no_overflow():
    """Squares of 400 and their sum stay inside the kernel, in FP32: nothing becomes infinite."""
    model = parse(OPERATORS["SkipLayerNormalization"])
    feeds = {"x": 400 * feeds_for(model)["x"]}

    done = convert(ir.to_proto(model), [feeds], keep_io_types=False)

    assert done.plan["it"].is_half
    assert done.comparison is not None
    assert 0 == done.comparison.worst.non_finite


def test_bfloat16_as_far_as_the_schema_allows():
    """BiasGelu's schema lists bfloat16 or not, and the plan follows it."""
    schema = find_schema("BiasGelu", "com.microsoft", 1)
    assert schema is not None
    allowed = "tensor(bfloat16)" in schema.allowed["T"]

    assert allowed == bool(operands(OPERATORS["BiasGelu"], BF16)[0])


def test_an_unknown_domain_has_no_schema():
    """The internal domains of the runtime, which never occur in model files, have none either."""
    assert None is find_schema("Gelu", "mine", 1)
    assert None is find_schema("ReorderInput", "com.microsoft.nchwc", 1)


def test_a_mask_added_inside_attention_may_be_half():
    """A bias of -1e9 that MultiHeadAttention adds before its softmax is a mask, and drawn in like any other."""
    text = contrib(
        f"s = Mul(x, x) [shift] a = Mul(hidden, far) [it] y = {MS}MultiHeadAttention <num_heads = 2> (x, s, x, , , a)",
        f"{X}, float[1, 1, 3, 3] hidden",
        Y,
        "<float far = {-1e9}>",
    )
    feeds = {"x": feeds_for(parse(text))["x"], "hidden": np.triu(np.ones((1, 1, 3, 3), np.float32), 1)}

    done = convert(ir.to_proto(parse(text)), [feeds])

    assert {"far"} == done.plan.masks
    assert done.plan["it"].is_half


def test_beam_search_keeps_its_types():
    """An operator with subgraphs keeps the types of its inputs and outputs."""
    body = onnx.helper.make_graph([], "decoder", [], [])
    node = ir.from_proto(
        onnx.helper.make_node("BeamSearch", ["ids"], ["y"], "it", domain="com.microsoft", decoder=body)
    )

    assert not half_operands(node, 1, FP16)
