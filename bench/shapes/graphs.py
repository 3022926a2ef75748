"""Shapes no torch module has: control flow, selection, quantized parts, functions and other domains, as ONNX text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from bench.shapes.base import Feeds, floats, together


@dataclass(frozen=True)
class Graph:
    """ONNX text, and how to draw its inputs.

    Values that the text declares in the graph's `<...>` without numbers are weights, drawn from a seed.
    """

    text: str
    draw: Callable[[np.random.Generator], Feeds]

    def build(self, rng: np.random.Generator) -> onnx.ModelProto:
        """The model, with its weights."""
        model = onnx.parser.parse_model(self.text)
        given = {weight.name for weight in model.graph.initializer}
        declared = [value for value in model.graph.value_info if value.name not in given]
        del model.graph.value_info[:]
        for value in declared:
            shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            # Rows that keep the size of what they weigh; biases are small.
            size = 1 / math.sqrt(shape[-2]) if len(shape) > 1 else 0.1
            weight = (size * rng.standard_normal(shape)).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
        onnx.checker.check_model(model, full_check=True)
        return model


def loops() -> Graph:
    """A Loop that refines a state, by another layer on odd steps."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    loops (float[4, 64] x, int64 steps) => (float[4, 16] y, float[n, 4, 64] states)
    <float[64, 64] first, float[64, 64] even, float[64, 64] odd, float[64, 256] wide, float[256, 16] head, float[64] bias,
     int64 two = {2}, int64 zero = {0}, bool go = {1}>
    {
      entered = MatMul(x, first)
      start = Tanh(entered)
      final, states = Loop (steps, go, start) <body = step (int64 i, bool was, float[4, 64] state) =>
          (bool still, float[4, 64] next, float[4, 64] seen) {
        still = Identity(was)
        rest = Mod(i, two)
        is_even = Equal(rest, zero)
        refined = If (is_even) <
          then_branch = when_even () => (float[4, 64] a) { a = MatMul(state, even) },
          else_branch = when_odd () => (float[4, 64] b) { turned = MatMul(state, odd)  b = Add(turned, bias) }
        >
        summed = Add(refined, state)
        next = Tanh(summed)
        seen = Identity(next)
      }>
      widened = MatMul(final, wide)
      active = Relu(widened)
      y = MatMul(active, head)
    }"""
    return Graph(text, together(floats("x", 4, 64), lambda rng: {"steps": rng.integers(2, 6, ())}))


def detector() -> Graph:
    """Boxes and scores from features, and a NonMaxSuppression that chooses among them."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    detector (float[1, 40, 32] features) => (int64[n, 3] selected, float[1, 40, 4] boxes, float[1, 5, 40] scores)
    <float[32, 64] hidden, float[64] bias, float[64, 2] middle, float[64, 2] extent, float[64, 5] classes,
     float half = {0.5}, int64 most = {8}, float overlap = {0.4}, float least = {0.5}>
    {
      weighed = MatMul(features, hidden)
      shifted = Add(weighed, bias)
      active = Relu(shifted)
      centre_raw = MatMul(active, middle)
      centre = Sigmoid(centre_raw)
      extent_raw = MatMul(active, extent)
      size = Sigmoid(extent_raw)
      reach = Mul(size, half)
      low = Sub(centre, reach)
      high = Add(centre, reach)
      boxes = Concat <axis = 2> (low, high)
      logits = MatMul(active, classes)
      turned = Transpose <perm = [0, 2, 1]> (logits)
      scores = Sigmoid(turned)
      selected = NonMaxSuppression(boxes, scores, most, overlap, least)
    }"""
    return Graph(text, floats("features", 1, 40, 32))


def quantized() -> Graph:
    """Weights and activations of the middle layer quantized to eight bits; float layers around it."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    quantized (float[8, 32] x) => (float[8, 16] y)
    <float[32, 64] first, float[64] bias, float[64, 64] middle, float[64, 16] last,
     float fine = {0.02}, uint8 centre = {128}, float weight_scale = {0.004}, int8 nought = {0}>
    {
      weighed = MatMul(x, first)
      shifted = Add(weighed, bias)
      active = Relu(shifted)
      active_q = QuantizeLinear(active, fine, centre)
      active_d = DequantizeLinear(active_q, fine, centre)
      middle_q = QuantizeLinear(middle, weight_scale, nought)
      middle_d = DequantizeLinear(middle_q, weight_scale, nought)
      mixed = MatMul(active_d, middle_d)
      mixed_q = QuantizeLinear(mixed, fine, centre)
      mixed_d = DequantizeLinear(mixed_q, fine, centre)
      bent = Tanh(mixed_d)
      y = MatMul(bent, last)
    }"""
    return Graph(text, floats("x", 8, 32))


def functions() -> Graph:
    """Two blocks that call local functions, one of which calls the other."""
    text = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    functions (float[8, 48] x) => (float[8, 12] y)
    <float[48, 48] w1, float[48] b1, float[48, 48] w2, float[48] b2, float[48, 12] head>
    {
      one = local.block(x, w1, b1)
      two = local.block(one, w2, b2)
      y = MatMul(two, head)
    }
    <domain: "local", opset_import: ["" : 20]>
    dense (v, w, b) => (out)
    {
      weighed = MatMul(v, w)
      out = Add(weighed, b)
    }
    <domain: "local", opset_import: ["" : 20, "local" : 1]>
    block (v, w, b) => (out)
    {
      inner = local.dense(v, w, b)
      bent = Gelu(inner)
      out = Add(bent, v)
    }"""
    return Graph(text, floats("x", 8, 48))


def contrib() -> Graph:
    """Operators of ONNX Runtime's own domain between standard ones."""
    text = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    contrib (float[8, 32] x) => (float[8, 16] y)
    <float[32, 64] first, float[64] bias, float[64, 64] middle, float[64, 256] wide, float[256, 16] last>
    {
      weighed = MatMul(x, first)
      active = com.microsoft.BiasGelu(weighed, bias)
      turned = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (active, middle)
      bent = com.microsoft.Gelu(turned)
      widened = MatMul(bent, wide)
      bright = Relu(widened)
      y = MatMul(bright, last)
    }"""
    return Graph(text, floats("x", 8, 32))
