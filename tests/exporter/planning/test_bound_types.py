"""Reasons besides the schema that keep a node in float32."""

from __future__ import annotations

import onnx_ir as ir

from demi.exporter.operators.schemas import half_operands
from demi.exporter.passes.lower import apply_plan
from demi.exporter.passes.prepare import prepare
from demi.plan import Decision, Precision, Reason, make_plan

CUSTOM = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
custom (float[n] x) => (float[n] y) { [before] h = Exp(x) [odd] a = mine.Secret(h) [after] y = Neg(a) }"""


def test_readers_of_an_unknown_type_stay_float32():
    """A node that reads a tensor without a type keeps its own, and a custom operator is fed float32 by a half node."""
    model = prepare(ir.from_onnx_text(CUSTOM))
    plan = make_plan("fp16", [Decision("before", "Exp", Precision.HALF, Reason.SAFE)])

    lowered = apply_plan(model, plan).model

    assert not half_operands(model.graph[2], 17, ir.DataType.FLOAT16)
    assert ["Cast", "Exp", "Cast", "Secret", "Neg"] == [node.op_type for node in lowered.graph]
    assert ir.DataType.FLOAT is lowered.graph[3].inputs[0].dtype


def test_bits_are_not_halved():
    """BitCast returns the bits of its input: it stays float32 though its schema allows half."""
    text = '<ir_version: 13, opset_import: ["" : 26]> bits (float[n] x) => (int32[n] y) { y = BitCast <to = 6> (x) }'
    node = prepare(ir.from_onnx_text(text)).graph[0]

    assert not half_operands(node, 26, ir.DataType.FLOAT16)


def test_domain_without_standard_operators():
    """A model that imports no standard operators imports them for the casts."""
    text = """<ir_version: 8, opset_import: ["ai.onnx.ml" : 3, "" : 17]>
    scaled (float[n] x) => (float[n] y) { [a] h = Exp(x) [b] y = ai.onnx.ml.Scaler <offset = [0.0], scale = [2.0]> (h) }"""
    model = prepare(ir.from_onnx_text(text))
    model.opset_imports[""] = 17

    lowered = apply_plan(model, make_plan("fp16", [Decision("a", "Exp", Precision.HALF, Reason.SAFE)]))

    assert 2 == lowered.casts
