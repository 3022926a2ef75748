"""Single kernels for which half is known to be inaccurate: the device's output beside the emulator's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from bench.gpu.setup import Row, Setup, attempt
from demi.calibration.samples import Samples
from demi.exporter.conversion import emulate
from demi.runtime.base import Device
from demi.runtime.onnxruntime.session import open_session
from demi.tensors import Array

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
TOLERANCE = 2e-3
"""Relative; two FP16 steps."""


@dataclass(frozen=True, slots=True)
class Case:
    """A graph in ONNX text with one input `x` and one output `y`, both FP16, and the value of `x`."""

    name: str
    text: str
    x: Array


def full(value: float, *shape: int) -> Array:
    """Return an array of one number."""
    return np.full(shape, value, np.float16)


def graph(shape: str, body: str) -> str:
    """Return the text of a graph."""
    return f"case (float16[{shape}] x) => (float16[a, b] y) {{ {body} }}"


CASES = (
    Case("x * x * 0.001 of 300: overflow between nodes", graph("1, 4", "s = Mul(x, x) c = Constant<value_float = 0.001>() h = CastLike(c, x) y = Mul(s, h)"), full(300, 1, 4)),
    Case("MatMul: sums of 120,000 that cancel", graph("1, 8192", "t = Transpose<perm = [1, 0]>(x) u = Abs(t) y = MatMul(x, u)"), np.repeat(full(30, 2), 4096).reshape(1, -1) * np.repeat(np.array([1, -1], np.float16), 4096)),
    Case("ReduceMean over rows: 4,096 of 100", graph("1, 4096", "y = ReduceMean<axes = [1]>(x)"), full(100, 1, 4096)),
    Case("ReduceMean over columns: 4,096 of 100", graph("4096, 8", "y = ReduceMean<axes = [0]>(x)"), full(100, 4096, 8)),
    Case("ReduceL2: 4 of 300", graph("1, 4", "y = ReduceL2<axes = [1]>(x)"), full(300, 1, 4)),
    Case("ReduceSumSquare: 4 of 300, squares of a thousandth", graph("1, 4", "y = ReduceSumSquare<axes = [1]>(x)"), full(0.3, 1, 4)),
    Case("ReduceLogSumExp: 4 of 10", graph("1, 4", "y = ReduceLogSumExp<axes = [1]>(x)"), full(10, 1, 4)),
    Case("CumSum: 4,096 of 1", graph("1, 4096", "i = Constant<value_int = 1>() y = CumSum(x, i)"), full(1, 1, 4096)),
    Case("Softmax: 4,096 of 0", graph("1, 4096", "y = Softmax<axis = 1>(x)"), full(0, 1, 4096)),
    Case("LayerNormalization: 4,096 of 5000 and -5000", graph("1, 4096", "o = Div(x, x) y = LayerNormalization<axis = 1>(x, w)").replace("o = Div(x, x)", "n = Abs(x) q = Div(n, n) z = Constant<value_ints = [4096]>() w = Reshape(q, z)"), np.resize(np.array([5000, -5000], np.float16), (1, 4096))),
    Case("Exp: 11.5", graph("1, 4", "y = Exp(x)"), full(11.5, 1, 4)),
    Case("Erf, Tanh, Sqrt in a row", graph("1, 64", "p = Abs(x) q = Sqrt(p) r = Tanh(q) y = Erf(r)"), np.linspace(-2, 2, 64, dtype=np.float16).reshape(1, -1)),
)  # fmt: skip


def rows(setup: Setup) -> Iterator[Row]:
    """Yield one row a case."""
    for case in CASES:
        yield attempt(partial(beside, setup, case), case=case.name)


def beside(setup: Setup, case: Case) -> Row:
    """Return the last element of both outputs, and whether all elements agree."""
    model = onnx.parser.parse_model(HEADER + case.text)
    onnx.checker.check_model(model)
    emulated = emulate(ir.from_proto(onnx.shape_inference.infer_shapes(model)), Samples(({"x": case.x},), case.name))[0]
    session = open_session(model.SerializeToString(), Device.parse(setup.device))
    made = session.run({"x": case.x})
    want, got = (found["y"].astype(np.float32) for found in (emulated, made))
    return {
        "device": text(got),
        "emulator": text(want),
        "agree": bool(np.allclose(got, want, rtol=TOLERANCE, atol=0, equal_nan=True)),
        "nodes on the CPU": ", ".join(session.nodes_on_cpu()) if setup.is_cuda else "all",
    }


def text(array: Array) -> str:
    """Return the last element as text for JSON, NaN and infinities included."""
    return f"{float(array.ravel()[-1]):.5g}"
