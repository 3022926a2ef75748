"""Tiny models in ONNX text, each small enough to see whole, and what tests do with them."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from demi.calibration.sessions import session_for
from demi.exporter.passes.prepare import prepare
from demi.runtime.onnxruntime.session import SessionSettings
from demi.tensors import Feeds
from tests.contracts import require_prepared

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'

MLP = """
mlp (float[batch, 4] x) => (float[batch, 2] y)
<float[4, 3] w1 = {0.1, -0.2, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, 0.9, -1.0, 1.1, 1.2},
 float[3] b1 = {0.01, 0.02, 0.03},
 float[3, 2] w2 = {0.3, -0.1, 0.2, 0.6, -0.4, 0.5}>
{
  [first] hidden = MatMul(x, w1)
  [bias] shifted = Add(hidden, b1)
  [act] active = Relu(shifted)
  [second] y = MatMul(active, w2)
}
"""
"""Two layers; every node may be half."""

OVERFLOW = """
overflow (float[n] x) => (float[n] y)
<float hundred = {100.0}, float small = {0.001}>
{
  [grow] big = Mul(x, hundred)
  [shrink] y = Mul(big, small)
}
"""
"""x = 1,024 makes an intermediate of 102,400, which half cannot hold; the result could."""

SHAPED = """
shaped (float[n, 6] x) => (float[m, 6] y) <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}>
{
  [size] sizes = Shape(x)
  [first] n = Gather(sizes, zero)
  [rows] half = Div(n, two)
  [shape] rows = Add(half, one)
  [y] y = Slice(x, zero, rows, zero)
}
"""
"""All but the last node work on shapes, which ONNX Runtime does on the CPU beside a GPU."""

SQUARES = """
squares (float[n] x) => (float[n] y)
<float two = {2.0}>
{
  [square] squared = Pow(x, two)
  [act] y = Relu(squared)
}
"""
"""Pow stays FP32 by the op list, Relu becomes half: one cast in, one cast out."""

LAYER_NORM = """
layer_norm (float[n, 4] x) => (float[n, 4] y)
<int64[1] last = {-1}, float two = {2.0}, float eps = {1e-5}, float[4] scale = {1.0, 2.0, 3.0, 4.0}>
{
  [mean] mean = ReduceMean(x, last)
  [centre] centred = Sub(x, mean)
  [square] squared = Pow(centred, two)
  [variance] variance = ReduceMean(squared, last)
  [eps] safe = Add(variance, eps)
  [root] deviation = Sqrt(safe)
  [divide] normal = Div(centred, deviation)
  [scale] y = Mul(normal, scale)
}
"""

RMS_NORM = """
rms_norm (float[n, 4] x) => (float[n, 4] y)
<int64[1] last = {-1}, float eps = {1e-5}, float[4] scale = {1.0, 2.0, 3.0, 4.0}>
{
  [square] squared = Mul(x, x)
  [mean] mean = ReduceMean(squared, last)
  [eps] safe = Add(mean, eps)
  [root] root = Sqrt(safe)
  [inverse] inverse = Reciprocal(root)
  [apply] normal = Mul(x, inverse)
  [scale] y = Mul(normal, scale)
}
"""

EMBEDDING = """
embedding (int64[batch, seq] input_ids, int64[batch, seq] attention_mask) => (float[batch, 2] y)
<float[5, 2] table = {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}, int64[1] middle = {1}, int64[1] last = {2}>
{
  [look_up] rows = Gather(table, input_ids)
  [mask] weights = Cast <to = 1> (attention_mask)
  [widen] column = Unsqueeze(weights, last)
  [apply] masked = Mul(rows, column)
  [sum] y = ReduceSum <keepdims = 0> (masked, middle)
}
"""
"""Token ids that must stay below the five rows of the table, and a mask."""

BRANCHES = """
branches (bool flag, float[n] x) => (float[n] y)
<float two = {2.0}>
{
  [before] outer = Mul(x, two)
  [choose] y = If (flag) <
    then_branch = yes () => (float[n] a) { [inner_add] a = Add(outer, two) },
    else_branch = no () => (float[n] b) { [inner_sub] b = Sub(outer, two) }
  >
}
"""
"""Both branches read a tensor and a weight of the graph around them."""

LOOP = """
looping (float[n] x) => (float[n] y)
<int64 trips = {3}, bool go = {1}, float half = {0.5}>
{
  [before] start = Mul(x, half)
  [loop] y = Loop (trips, go, start) <
    body = step (int64 i, bool was, float[n] state) => (bool still, float[n] next) {
      [again] still = Identity(was)
      [grow] grown = Add(state, start)
      [shrink] next = Mul(grown, half)
    }
  >
}
"""
"""A carried state, an outer tensor and an outer weight inside the body."""

SCAN = """
scanning (float[steps, 2] x) => (float[2] total, float[steps, 2] sums)
<float[2] zero = {0.0, 0.0}, float[2] gain = {0.5, 2.0}>
{
  [scan] total, sums = Scan <num_scan_inputs = 1,
    body = step (float[2] carried, float[2] row) => (float[2] next, float[2] seen) {
      [weigh] weighed = Mul(row, gain)
      [add] next = Add(carried, weighed)
      [copy] seen = Identity(next)
    }
  > (zero, x)
}
"""


def parse(text: str) -> ir.Model:
    """A model from ONNX text; the usual header is put in front when there is none.

    ONNX text has the numbers of half tensors as their bits; here they are written as numbers.
    """
    text = re.sub(r"\b(b?float16)((?:\[[\d, ]*\])?(?: \w+ =)?) \{([^{}]*)\}", _half_bits, text)
    return ir.from_onnx_text(text if text.lstrip().startswith("<") else HEADER + text)


def _half_bits(match: re.Match[str]) -> str:
    kind, name, numbers = match.groups()
    dtype = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    bits = np.array([float(number) for number in numbers.split(",")]).astype(dtype).view(np.uint16)
    return f"{kind}{name} {{{', '.join(map(str, bits.tolist()))}}}"


def in_half(text: str, half: str = "float16") -> str:
    """The same text with every float32 tensor in half."""
    return re.sub(r"\bfloat(?=[\[ ])", half, text)


def prepared(text: str) -> ir.Model:
    """Return a model from ONNX text, ready for planning and lowering."""
    model = prepare(parse(text))
    require_prepared(model)
    return model


def check(model: ir.Model) -> None:
    """Raise unless the ONNX checker passes the model, types and shapes included."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def run(model: ir.Model, feeds: Feeds) -> Feeds:
    """Run a model on the CPU with every explicit cast kept, and return its outputs."""
    with session_for(model, settings=SessionSettings(threads=1, faithful=True)) as session:
        return session.run(feeds)


def node(model: ir.Model, name: str) -> ir.Node:
    """The one node of that name, in subgraphs too."""
    (found,) = (each for each in model.graph.all_nodes() if each.name == name)
    return found


def ops(model: ir.Model) -> list[str]:
    """The operators of the whole model, in order."""
    return [each.op_type for each in model.graph.all_nodes()]


def text(model: ir.Model) -> bytes:
    """The model's bytes: equal before and after when nobody changed it."""
    return ir.to_proto(model).SerializeToString(deterministic=True)
