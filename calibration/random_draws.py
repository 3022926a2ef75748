"""Fixed random numbers for measuring: replace the random nodes of a model by reads from a table.

Two runs of a model with random nodes differ, and so do FP32 and half, which would look like a rounding error. In
sessions that measure, random nodes read from a table instead, at a place given by their names. The reference, the
emulated half model and all trials of the search then get the same numbers, and all differences come from half.

The table has the distribution of the numbers. Tensors with more elements than the table repeat it, and so does every
iteration of a loop.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from demi.calibration.graph_pieces import (
    Spelled,
    constant,
    first,
    operand,
    replace,
    spelled,
    typed,
    with_axis,
)
from demi.tensors import Array

TABLE = 1 << 16
"""Numbers in a table."""

OLDEST_OPSET = 9
"""The oldest opset with all operators used here; in older opsets, random nodes are kept."""

OPSET_ALLOWZERO = 14
"""First opset in which Reshape takes sizes of 0 literally (`allowzero`); before, an empty tensor cannot be replaced."""

_COPY = re.compile(r"^demi_\w+/")
"""Prefix of names in a copy of a model (`demi.calibration.explain.twins`), which gets the numbers of the original."""

_UNIFORM, _NORMAL = "demi_uniform_draws", "demi_normal_draws"


def random_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes whose results differ from run to run, also in subgraphs."""
    return [node for node in model.graph.all_nodes() if is_random(node)]


def is_random(node: ir.Node) -> bool:
    """Return whether a node draws random numbers when the model runs; Dropout does so only in training mode."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _REWRITES:
        return False
    return node.op_type != "Dropout" or _trains(node)


def with_fixed_draws(model: ir.Model) -> ir.Model:
    """Return a copy with the same random numbers in every run, or the model itself if nothing is random."""
    if not random_nodes(model) or model.opset_imports.get("", 1) < OLDEST_OPSET:
        return model
    fixed = model.clone()
    opset = fixed.opset_imports.get("", 1)
    tables = {name: _table(fixed, name) for name in (_UNIFORM, _NORMAL)}
    for node in random_nodes(fixed):
        replace(node, _REWRITES[node.op_type](_Draws(node, opset, tables)))
    return fixed


def _table(model: ir.Model, name: str) -> ir.Value:
    rng = np.random.default_rng(0)
    # Centres of a grid in random order: never 0 or 1, where the logarithms below are infinite.
    numbers: Array = (rng.permutation(TABLE) + 0.5) / TABLE if name == _UNIFORM else rng.standard_normal(TABLE)
    tensor = ir.tensor(numbers.astype(np.float32), name=name)
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([TABLE]), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _trains(node: ir.Node) -> bool:
    """Return whether a Dropout may drop elements, as far as its constant inputs show."""
    mode, ratio = operand(node, 2), operand(node, 1)
    if mode is None or (mode.const_value is not None and not mode.const_value.numpy().any()):
        return False
    return ratio is None or ratio.const_value is None or bool(ratio.const_value.numpy().any())


class _Draws:
    """Builds the replacement of one random node. Owns the list of new nodes."""

    def __init__(self, node: ir.Node, opset: int, tables: dict[str, ir.Value]) -> None:
        self.node = node
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self._tables = tables

    def add(
        self, op_type: str, *inputs: ir.Value, kind: ir.DataType = ir.DataType.FLOAT, **attributes: int
    ) -> ir.Value:
        """Add a node and return its result."""
        self.nodes.append(typed(ir.node(op_type, list(inputs), attributes=attributes), kind))
        return self.nodes[-1].outputs[0]

    def constant(self, value: Array) -> ir.Value:
        """Add a constant and return its value."""
        self.nodes.append(constant(value))
        return self.nodes[-1].outputs[0]

    def number(self, value: float) -> ir.Value:
        """Add a float32 scalar and return its value."""
        return self.constant(np.array(value, np.float32))

    def cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """Add a cast and return its result."""
        return self.add("Cast", value, kind=kind, to=int(kind))

    def drawn(self, table: str, like: ir.Value | None = None) -> ir.Value:
        """Return numbers of a table, from a place given by the node's name, in the shape of `like` or of the attribute."""
        whole = ir.DataType.INT64
        if like is None:
            dims = self.node.attributes["shape"].as_ints()
            shape, size = self.constant(np.array(dims, np.int64)), self.constant(np.array([math.prod(dims)], np.int64))
        else:
            shape, size = self.add("Shape", like, kind=whole), self._size(like)
        begin = zlib.crc32(_COPY.sub("", self.node.name or "").encode()) % TABLE
        one = ir.tensor(np.ones(1, np.int64))
        ones = typed(ir.node("ConstantOfShape", [size], attributes={"value": one}), whole)
        self.nodes.append(ones)
        counted = self.add("NonZero", ones.outputs[0], kind=whole)  # Range and Mod need later opsets
        places = self.add("Add", counted, self.constant(np.array(begin, np.int64)), kind=whole)
        length = self.constant(np.array(TABLE, np.int64))
        turns = self.add("Mul", self.add("Div", places, length, kind=whole), length, kind=whole)
        inside = self.add("Sub", places, turns, kind=whole)
        zeros = {"allowzero": 1} if self.opset >= OPSET_ALLOWZERO else {}  # 0 is a size, not "as in the input"
        flat = self.add("Gather", self._tables[table], inside)
        self.nodes.append(typed(ir.node("Reshape", [flat, shape], attributes=zeros), ir.DataType.FLOAT))
        return self.nodes[-1].outputs[0]

    def _size(self, value: ir.Value) -> ir.Value:
        """Return the number of elements of a value, as a tensor with one element."""
        count = self.add("Size", value, kind=ir.DataType.INT64)
        return self.add("Reshape", count, self.constant(np.array([1], np.int64)), kind=ir.DataType.INT64)

    def kind(self, default: ir.DataType = ir.DataType.FLOAT) -> ir.DataType:
        """Return the type of the result: the attribute's, or the default."""
        said = self.node.attributes.get_int("dtype", 0)
        return ir.DataType(said) if said else default

    def done(self, value: ir.Value, kind: ir.DataType) -> Spelled:
        """Return the replacement, with a last node that casts the result to its type."""
        self.cast(value, kind)
        return spelled(self.nodes)


def _uniform(draws: _Draws) -> Spelled:
    low, high = (draws.node.attributes.get_float(name, default) for name, default in (("low", 0.0), ("high", 1.0)))
    unit = draws.drawn(_UNIFORM, _like(draws.node))
    wide = draws.add("Add", draws.add("Mul", unit, draws.number(high - low)), draws.number(low))
    return draws.done(wide, draws.kind(_input_kind(draws.node)))


def _normal(draws: _Draws) -> Spelled:
    mean, scale = (draws.node.attributes.get_float(name, default) for name, default in (("mean", 0.0), ("scale", 1.0)))
    unit = draws.drawn(_NORMAL, _like(draws.node))
    wide = draws.add("Add", draws.add("Mul", unit, draws.number(scale)), draws.number(mean))
    return draws.done(wide, draws.kind(_input_kind(draws.node)))


def _bernoulli(draws: _Draws) -> Spelled:
    chance = draws.cast(first(draws.node), ir.DataType.FLOAT)
    # The comparison has this direction in ONNX's function body for Bernoulli, which ONNX Runtime executes.
    hit = draws.add("Greater", draws.drawn(_UNIFORM, first(draws.node)), chance, kind=ir.DataType.BOOL)
    return draws.done(hit, draws.kind(_input_kind(draws.node)))


def _multinomial(draws: _Draws) -> Spelled:
    """Replace Multinomial by the Gumbel-max trick (Gumbel, "Statistical theory of extreme values", 1954)."""
    samples = draws.node.attributes.get_int("sample_size", 1)
    rows = with_axis("Unsqueeze", draws.cast(first(draws.node), ir.DataType.FLOAT), 1, draws.opset, ir.DataType.FLOAT)
    draws.nodes += rows
    spread = draws.add("Expand", rows[-1].outputs[0], draws.constant(np.array([1, samples, 1], np.int64)))
    unit = draws.drawn(_UNIFORM, spread)
    noise = draws.add("Neg", draws.add("Log", draws.add("Neg", draws.add("Log", unit))))
    chosen = draws.add("ArgMax", draws.add("Add", spread, noise), kind=ir.DataType.INT64, axis=2, keepdims=0)
    return draws.done(chosen, draws.kind(ir.DataType.INT32))


def _dropout(draws: _Draws) -> Spelled:
    node, truth = draws.node, ir.DataType.BOOL
    x, ratio, mode = first(node), operand(node, 1), operand(node, 2)
    assert mode is not None
    kind = x.dtype or ir.DataType.FLOAT
    share = draws.number(0.5) if ratio is None else draws.cast(ratio, ir.DataType.FLOAT)
    unit = draws.drawn(_UNIFORM, first(draws.node))
    lost = draws.add("And", draws.add("Less", unit, share, kind=truth), mode, kind=truth)
    kept = draws.add("Not", lost, kind=truth)
    scale = draws.add("Where", mode, draws.add("Sub", draws.number(1.0), share), draws.number(1.0))
    wide = draws.add("Div", draws.cast(x, ir.DataType.FLOAT), scale)
    shown = draws.cast(draws.add("Where", kept, wide, draws.number(0.0)), kind)
    return Spelled(draws.nodes, [shown, kept][: len(node.outputs)])


def _like(node: ir.Node) -> ir.Value | None:
    """Return the input whose shape the result has; None where an attribute gives the shape."""
    return node.inputs[0] if node.inputs else None


def _input_kind(node: ir.Node) -> ir.DataType:
    """Return the type of the input, which is the result's type when there is no attribute."""
    return (node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None) or ir.DataType.FLOAT


_REWRITES: dict[str, Callable[[_Draws], Spelled]] = {
    "RandomUniform": _uniform,
    "RandomUniformLike": _uniform,
    "RandomNormal": _normal,
    "RandomNormalLike": _normal,
    "Bernoulli": _bernoulli,
    "Multinomial": _multinomial,
    "Dropout": _dropout,
}
"""Random operators and their replacements."""
