"""A small graph builder, and the registry of the corpus.

`@model(kind)` turns a function of an empty `Net` into an entry of `CORPUS`: its name is the model's, its docstring the
note. The network's weights are drawn from a seed of its name, its samples from two others.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Feeds = dict[str, NDArray[Any]]
Draw = Callable[[np.random.Generator], dict[str, Any]]

DRAWS = 3
"""Sets of inputs for calibration, and as many for evaluation."""
SPOT = "/spot/"
"""Prefix of MatMul and Conv nodes of a hard spot: a good plan may keep them in FP32."""
FLOAT_MIN = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class HardModel:
    """A model with its calibration and evaluation inputs, and the share of it that must become half."""

    name: str
    kind: str
    model: onnx.ModelProto
    calibration: list[Feeds]
    evaluation: list[Feeds]
    """Drawn from the calibration's distribution with another seed."""
    min_half_share: float
    """Minimum share of the MatMul, Gemm and Conv nodes in half."""
    note: str


CORPUS: dict[str, Callable[[], HardModel]] = {}


def model(kind: str, *, opset: int = 18, share: float = 0.9) -> Callable[[Callable[[Net], HardModel]], None]:
    """Register a function that fills a `Net` and returns `net.finish(...)`."""

    def register(function: Callable[[Net], HardModel]) -> None:
        name = function.__name__
        note = inspect.cleandoc(function.__doc__ or "")
        assert name not in CORPUS
        assert note
        CORPUS[name] = functools.cache(lambda: function(Net(name, kind, opset, share, note)))

    return register


class Tensor:
    """A value of a `Net`, with arithmetic: `x - net.mean(x)` adds nodes."""

    __array_ufunc__ = None  # `array * tensor` calls the tensor's operator

    def __init__(self, net: Net, name: str) -> None:
        self.net, self.name = net, name

    def __add__(self, other: Any) -> Tensor:
        return self.net.op("Add", self, other)

    def __radd__(self, other: Any) -> Tensor:
        return self.net.op("Add", other, self)

    def __sub__(self, other: Any) -> Tensor:
        return self.net.op("Sub", self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self.net.op("Sub", other, self)

    def __mul__(self, other: Any) -> Tensor:
        return self.net.op("Mul", self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return self.net.op("Mul", other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return self.net.op("Div", self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return self.net.op("Div", other, self)

    def __pow__(self, other: Any) -> Tensor:
        return self.net.op("Pow", self, other)

    def __neg__(self) -> Tensor:
        return self.net.op("Neg", self)


class Net:
    """A graph on its way. `net.Softmax(x, axis=-1)` adds a node; numbers and arrays become initializers.

    Plain numbers are float32 scalars, lists are int64 (shapes, axes), arrays keep integer types.
    """

    def __init__(self, name: str, kind: str, opset: int, share: float, note: str) -> None:
        self.name, self.kind, self.opset, self.share, self.note = name, kind, opset, share, note
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.inputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._count = itertools.count()

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)
        return functools.partial(self.op, op_type)

    def input(self, name: str, *shape: int, dtype: Any = np.float32) -> Tensor:
        """A graph input with a free batch axis before `shape`."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["batch", *shape]))
        return Tensor(self, name)

    def const(self, value: Any) -> Tensor:
        """An initializer."""
        if isinstance(value, list):
            value = np.array(value, np.int64)
        array = np.asarray(value)
        if isinstance(value, int) or array.dtype.kind == "f":
            array = array.astype(np.float32)
        name = f"c{next(self._count)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return Tensor(self, name)

    def op(self, op_type: str, *operands: Any, outputs: int = 1, hard: bool = False, **attributes: Any) -> Any:
        """A node; its output, or a tuple of them."""
        number = next(self._count)
        name = f"{SPOT if hard else '/'}{op_type}_{number}"
        names = ["" if x is None else self._tensor(x).name for x in operands]
        results = [Tensor(self, f"t{number}_{i}") for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, names, [r.name for r in results], name=name, **attributes))
        return results[0] if outputs == 1 else tuple(results)

    def _tensor(self, value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else self.const(value)

    def reduce(self, op_type: str, x: Tensor, axes: Sequence[int] = (-1,), keep: bool = True) -> Tensor:
        """A reduction, with its axes where the operator set wants them."""
        by_input = self.opset >= (13 if op_type == "ReduceSum" else 18)
        if by_input:
            return self.op(op_type, x, list(axes), keepdims=int(keep))
        return self.op(op_type, x, axes=list(axes), keepdims=int(keep))

    def mean(self, x: Tensor, axes: Sequence[int] = (-1,), keep: bool = True) -> Tensor:
        """ReduceMean."""
        return self.reduce("ReduceMean", x, axes, keep)

    def sum(self, x: Tensor, axes: Sequence[int] = (-1,), keep: bool = True) -> Tensor:
        """ReduceSum."""
        return self.reduce("ReduceSum", x, axes, keep)

    def unsqueeze(self, x: Tensor, *axes: int) -> Tensor:
        """Unsqueeze."""
        if self.opset >= 13:
            return self.op("Unsqueeze", x, list(axes))
        return self.op("Unsqueeze", x, axes=list(axes))

    def cast(self, x: Any, dtype: Any) -> Tensor:
        """Cast."""
        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def slice(self, x: Tensor, start: int, end: int, axis: int = -1) -> Tensor:
        """x[..., start:end, ...] along an axis."""
        return self.op("Slice", x, [start], [end], [axis])

    def weight(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> NDArray[np.float32]:
        """Normal numbers."""
        return self.rng.normal(offset, scale, shape).astype(np.float32)

    def linear(self, x: Tensor, wide: int, out: int, gain: float = 1.0, hard: bool = False) -> Tensor:
        """MatMul and bias; the output is about `gain` times as large as the input."""
        product = self.op("MatMul", x, self.weight(wide, out, scale=gain / math.sqrt(wide)), hard=hard)
        return product + self.weight(out, scale=0.1 * gain)

    def mlp(self, x: Tensor, *widths: int, act: str = "Relu") -> Tensor:
        """Linear layers with an activation between them: the ordinary part of a model."""
        for position, (wide, out) in enumerate(itertools.pairwise(widths)):
            if position:
                x = self.op(act, x)
            x = self.linear(x, wide, out, gain=1.0 if position == 0 else 1.4)
        return x

    def conv(self, x: Tensor, wide: int, out: int, size: int = 3, gain: float = 1.0, **attributes: Any) -> Tensor:
        """A 2-D convolution that keeps height and width (with stride 1)."""
        weight = self.weight(out, wide, size, size, scale=gain / math.sqrt(wide * size * size))
        pads = [size // 2] * 4
        return self.op("Conv", x, weight, self.weight(out, scale=0.1 * gain), pads=pads, **attributes)

    def layernorm(self, x: Tensor, width: int, eps: float = 1e-5) -> Tensor:
        """LayerNorm as PyTorch's exporter wrote it before operator set 17."""
        centred = x - self.mean(x)
        deviation = self.op("Sqrt", self.mean(centred**2.0) + eps)
        return centred / deviation * self.weight(width, scale=0.1, offset=1.0) + self.weight(width, scale=0.1)

    def layernorm_op(self, x: Tensor, width: int) -> Tensor:
        """LayerNormalization, the operator."""
        return self.op(
            "LayerNormalization", x, self.weight(width, scale=0.1, offset=1.0), self.weight(width, scale=0.1)
        )

    def rmsnorm(self, x: Tensor, width: int, eps: float = 1e-6) -> Tensor:
        """RMSNorm as LLaMA and T5 write it."""
        root = self.op("Sqrt", self.mean(x**2.0) + eps)
        return x * (1.0 / root) * self.weight(width, scale=0.1, offset=1.0)

    def split_heads(self, x: Tensor, heads: int, width: int) -> Tensor:
        """[batch, time, width] -> [batch, heads, time, width / heads]."""
        return self.op("Transpose", self.op("Reshape", x, [0, 0, heads, width // heads]), perm=[0, 2, 1, 3])

    def attention(
        self,
        x: Tensor,
        width: int,
        heads: int,
        weigh: Callable[[Tensor], Tensor] | None = None,
        turn: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> Tensor:
        """Multi-head self-attention; `weigh` makes weights of scaled scores, `turn` rotates queries and keys."""
        q, k, v = (self.split_heads(self.linear(x, width, width), heads, width) for _ in range(3))
        scores = self.op("MatMul", turn(q), self.op("Transpose", turn(k), perm=[0, 1, 3, 2]))
        scores = scores / math.sqrt(width // heads)
        weights = weigh(scores) if weigh else self.op("Softmax", scores, axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", mixed, [0, 0, width]), width, width)

    def finish(self, draw: Draw, **outputs: Tensor) -> HardModel:
        """The checked model with these named outputs, and samples from `draw`."""
        names = {tensor.name: name for name, tensor in outputs.items()}
        for node in self.nodes:
            for field in (node.input, node.output):
                field[:] = [names.get(value, value) for value in field]
        results = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, results, self.constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        onnx.checker.check_model(proto, full_check=True)
        calibration, evaluation = (self._draws(draw, seed) for seed in (1, 2))
        return HardModel(self.name, self.kind, proto, calibration, evaluation, self.share, self.note)

    def _draws(self, draw: Draw, seed: int) -> list[Feeds]:
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        types = {i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in self.inputs}
        return [{n: np.asarray(a).astype(types[n]) for n, a in draw(rng).items()} for _ in range(DRAWS)]
