"""Widen: convert a model's half weights to FP32, which represents each of them exactly.

Checkpoints are published in bfloat16, and files converted by other tools have half weights. The reference of such a
model is what it computes with its weights in FP32, and a plan decides anew which nodes become half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from demi.float16 import BF16, FP16, HalfFormat, from_half
from demi.tensors import Array

HALF: dict[ir.DataType, HalfFormat] = {ir.DataType.FLOAT16: FP16, ir.DataType.BFLOAT16: BF16}
SINGLE = ir.DataType.FLOAT

TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype", "precision", "softmax_precision"})
"""Attributes that name the type in which a node computes, or of its output."""

BY_BITS = frozenset({"BitCast"})
"""Operators whose result depends on how wide their input is."""


@dataclass(frozen=True, slots=True)
class Widened:
    """A model without half weights, and sentences on what became FP32 (none where nothing did)."""

    model: ir.Model
    notes: tuple[str, ...] = ()
    half_types: tuple[str, ...] = ()
    """The half types that its weights had, as `FP16` and `BF16`."""


def widen_source(model: ir.Model) -> Widened:
    """Return a copy with half weights, and everything computed from them, in FP32; the model itself where it has none.

    Before: any valid model, which is not changed. After: nothing is half but public FP16 inputs and outputs, with casts
    next to them; bfloat16 ones are FP32, since neither NumPy nor most clients have the type. Names and order are
    unchanged. A model that reads the bits of its numbers is returned as it is.
    """
    formats = _formats(model)
    if not formats or any(node.op_type in BY_BITS for node in _nodes(model)):
        return Widened(model)
    copy = model.clone()
    public = [value.name for value in (*copy.graph.inputs, *copy.graph.outputs) if value.dtype is ir.DataType.BFLOAT16]
    borders = _Borders(copy)
    for node in _nodes(copy):
        _widen_attributes(node)
        for value in node.outputs:
            value.type = _single(value.type)
    for graph in (copy.graph, *copy.graph.subgraphs()):
        for value in (*graph.inputs, *graph.outputs):
            value.type = _single(value.type)
        for value in graph.initializers.values():
            _widen_initializer(value)
    borders.restore()
    was = tuple(fmt.dtype.value for fmt in formats)
    notes = [widened_note(was)]
    if public:
        notes.append(
            f"{_listed(public)} {'are' if len(public) > 1 else 'is'} BF16 in the source, and FP32 in the bundle"
        )
    return Widened(copy, tuple(notes), was)


def widened_note(was: Sequence[str]) -> str:
    """Describe for users what became of half weights."""
    return f"the weights are {' and '.join(was)} in the source: Demi plans with them in FP32, which holds each exactly"


def _formats(model: ir.Model) -> list[HalfFormat]:
    """Return the half formats of a model's weights, or of any of its tensors for bfloat16.

    A single number is not a weight: code that computes in half by design holds some.
    """
    held = {_dtype(tensor) for tensor in _constants(model) if tensor.size > 1}
    graphs = (model.graph, *model.graph.subgraphs())
    values = [value for graph in graphs for value in (*graph.inputs, *graph.outputs)]
    values += [value for node in _nodes(model) for value in node.outputs]
    if any(value.dtype is ir.DataType.BFLOAT16 for value in values):  # which no CPU computes in
        held.add(ir.DataType.BFLOAT16)
    return [fmt for dtype, fmt in HALF.items() if dtype in held]


def _constants(model: ir.Model) -> Iterable[ir.TensorProtocol]:
    graphs = (model.graph, *model.graph.subgraphs())
    for graph in graphs:
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    for node in _nodes(model):
        yield from (each.as_tensor() for each in _attributes(node) if each.type is ir.AttributeType.TENSOR)


def _dtype(tensor: ir.TensorProtocol) -> ir.DataType:
    return ir.DataType(tensor.dtype)


def _nodes(model: ir.Model) -> Iterable[ir.Node]:
    """Yield every node, including those of functions and subgraphs."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return [each for each in node.attributes.values() if isinstance(each, ir.Attr) and not each.is_ref()]


def _widen_attributes(node: ir.Node) -> None:
    for each in _attributes(node):
        if each.type is ir.AttributeType.TENSOR and (fmt := HALF.get(_dtype(each.as_tensor()))):
            node.attributes[each.name] = ir.AttrTensor(each.name, _in_single(each.as_tensor(), fmt))
        elif each.type is ir.AttributeType.INT and each.name in TYPE_ATTRIBUTES and each.as_int() in map(int, HALF):
            node.attributes[each.name] = ir.AttrInt64(each.name, int(SINGLE))


def _widen_initializer(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is not None and (fmt := HALF.get(_dtype(tensor))):
        value.const_value = _in_single(tensor, fmt)
    value.type = _single(value.type)


def _in_single(tensor: ir.TensorProtocol, fmt: HalfFormat) -> ir.TensorProtocol:
    def widened() -> ir.Tensor[Array]:
        numbers: Array = tensor.numpy()
        bits = numbers.view("uint16") if fmt is BF16 else numbers
        return ir.Tensor(from_half(bits, fmt), dtype=SINGLE, name=tensor.name)

    if isinstance(tensor, ir.ExternalTensor):  # it stays in its file until it is read
        return ir.LazyTensor(widened, dtype=SINGLE, shape=tensor.shape, name=tensor.name)
    return widened()


def _single(kind: ir.TypeProtocol | None) -> ir.TypeProtocol | None:
    """FP32 in place of half, in sequences and optionals of tensors as well; other types as they are."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        inner = _single(kind.elem_type)
        return kind if inner is None else type(kind)(inner)
    return ir.TensorType(SINGLE) if isinstance(kind, ir.TensorType) and kind.dtype in HALF else kind


class _Borders:
    """The public FP16 inputs and outputs of a model, which keep their type. Owns only their positions."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        fp16 = ir.DataType.FLOAT16
        self._inputs = [value for value in model.graph.inputs if value.dtype is fp16 and value.const_value is None]
        outputs = enumerate(model.graph.outputs)
        self._outputs = [i for i, value in outputs if value.dtype is fp16 and not value.is_graph_input()]
        held = (
            value
            for graph in (model.graph, *model.graph.subgraphs())
            for value in (*graph.inputs, *graph.initializers.values())
        )
        self._taken = {node.name for node in _nodes(model)} | {value.name for value in held}
        self._taken |= {value.name for node in _nodes(model) for value in node.outputs}

    def restore(self) -> None:
        """Give them their type back, and cast between them and what became FP32."""
        for position in self._outputs:
            inner = self._graph.outputs[position]
            name = inner.name or ""
            cast = self._cast(inner, ir.DataType.FLOAT16, f"{name}_to_fp16")
            self._graph.append(cast)
            self._graph.outputs[position] = cast.outputs[0]
            inner.name = self._fresh(f"{name}_single")
            cast.outputs[0].name = name
        for value in self._inputs:
            readers = list(value.uses())
            value.type = ir.TensorType(ir.DataType.FLOAT16)
            cast = self._cast(value, SINGLE, f"{value.name}_to_fp32")
            for use in readers:
                use.node.replace_input_with(use.idx, cast.outputs[0])
            self._prepend(cast)

    def _prepend(self, cast: ir.Node) -> None:
        if len(self._graph):
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.append(cast)

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
        cast = ir.node("Cast", [value], attributes={"to": int(to)}, name=self._fresh(name))
        cast.outputs[0].name = self._fresh(f"{name}_value")
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(to), value.shape
        return cast

    def _fresh(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _listed(names: Iterable[str | None]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
