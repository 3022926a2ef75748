"""The half-precision emulator: compute on a CPU what a mixed model computes on a device with native half.

ONNX Runtime's CPU provider has hardly any half kernels. It wraps nodes in casts to float32 and removes the pairs it
can, so overflow and rounding between nodes disappear, and accuracy measured that way is too optimistic.

`widen` turns the mixed model into a float32 model in which every tensor that was half is rounded through half where it
is produced: `Cast(FLOAT16) -> Cast(FLOAT)`, a pair that ONNX Runtime keeps. GPUs do the same: they store operands and
results in half and accumulate in single inside MatMul and Conv. Add, Sub, Mul, Div and Sqrt computed in float32 and
rounded once equal native half arithmetic bit for bit, since float32 has more than twice half's digits (Figueroa, "When
is double rounding innocuous?", 1995).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.calibration.emulation.kernels import origin, spell_out
from demi.calibration.emulation.running_sums import accumulates
from demi.calibration.graph_pieces import place_behind
from demi.errors import ConversionError
from demi.float16 import BF16, FP16, Float32, HalfFormat, from_half

HALF_TYPES: dict[ir.DataType, HalfFormat] = {ir.DataType.FLOAT16: FP16, ir.DataType.BFLOAT16: BF16}

ROUNDED = "demi/rounded"
"""Metadata key of a widened tensor: the rounded tensor that its readers read instead."""

EXACT_OPS = frozenset(
    """
    Abs Compress Concat ConcatFromSequence DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Max MaxPool
    Min Neg Pad ReduceMax ReduceMin Relu Reshape ReverseSequence ScatterElements ScatterND SequenceAt SequenceConstruct
    Slice SpaceToDepth Split SplitToSequence Squeeze Tile TopK Transpose Trilu Unsqueeze Where
    """.split()
)
"""Operators that only move or select values, or are exact in half for half inputs: their outputs need no rounding.

ScatterElements and ScatterND are listed for their plain, minimum and maximum forms; `is_exact` excludes the others.
"""


def widen(mixed: ir.Model, *, kernels: bool = True, fused: Mapping[str, str] | None = None) -> ir.Model:
    """Return a float32 model that computes what `mixed` computes in half, with its rounding; `mixed` is unchanged.

    Half graph inputs keep their type and are cast; half outputs become float32 with half's values. Weights keep their
    rounded values. With `kernels`, reductions also round inside, like CUDA's kernels (`demi.calibration.emulation.kernels`);
    without, only tensors between nodes are rounded. `fused` names the kernel of each node that shares one with others: no
    tensor inside such a kernel is rounded. Missing types are inferred. Raises ConversionError for a tensor
    whose type cannot be inferred, since its rounding would be missed.
    """
    model = _typed(mixed.clone())
    if kernels:
        spell_out(model, lambda node: any(value.dtype in HALF_TYPES for value in node.outputs))
    for graph in (model.graph, *model.graph.subgraphs()):
        _widen_initializers(graph)
        _widen_inputs(graph, public=graph is model.graph)
    for node in list(model.graph.all_nodes()):
        _widen_node(node, fused or {})
    return common.NameFixPass()(model).model  # the model's own names may equal new ones


def as_read(value: ir.Value) -> ir.Value:
    """Return the tensor that readers of `value` read in a widened model: its rounded form, or itself if not rounded."""
    rounded: ir.Value = value.meta.get(ROUNDED, value)
    return rounded


def rounding_casts(model: ir.Model) -> int:
    """Count the casts to a half type in a widened model: the roundings that the emulator makes explicit."""
    half = {int(dtype) for dtype in HALF_TYPES}
    return sum(node.op_type == "Cast" and node.attributes["to"].as_int() in half for node in model.graph.all_nodes())


def _typed(model: ir.Model) -> ir.Model:
    """Return the model with a type for every tensor that is read and might be half. Raises ConversionError."""
    if _untyped(model):
        model = common.ShapeInferencePass(check_type=False, strict_mode=False)(model).model
    if unknown := [value for value in _untyped(model) if _may_be_half(value)]:
        raise ConversionError(
            f"the type of `{unknown[0].name}` cannot be inferred, so the model cannot be emulated",
            hint="state the types of inner tensors in the model (value_info)",
        )
    return model


def _may_be_half(value: ir.Value) -> bool:
    """Return whether a tensor without a type comes from half inputs; custom operators on FP32 are taken to return FP32."""
    node = value.producer()
    return node is not None and any(read is not None and read.dtype in HALF_TYPES for read in node.inputs)


def _untyped(model: ir.Model) -> list[ir.Value]:
    outputs = (value for node in model.graph.all_nodes() for value in node.outputs)
    return [value for value in outputs if value.type is None and (value.uses() or value.is_graph_output())]


def _widen_initializers(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        fmt = HALF_TYPES.get(value.dtype) if value.dtype is not None else None
        if fmt is not None and value.const_value is not None and not value.is_graph_input():
            value.const_value = ir.Tensor(_widened(value.const_value, fmt), dtype=ir.DataType.FLOAT, name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)


def _widened(tensor: ir.TensorProtocol, fmt: HalfFormat) -> Float32:
    numbers = tensor.numpy()
    return from_half(numbers.view("uint16") if fmt is BF16 else numbers, fmt)


def _widen_inputs(graph: ir.Graph, *, public: bool) -> None:
    for value in graph.inputs:
        if value.dtype not in HALF_TYPES:
            continue
        if not public:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            continue
        cast = _cast(value, ir.DataType.FLOAT, f"{value.name}_wide")
        for use in value.uses():  # a graph output that is the input itself stays half
            use.node.replace_input_with(use.idx, cast.outputs[0])
        cast.replace_input_with(0, value)
        place_behind(value, [cast])


def _widen_node(node: ir.Node, fused: Mapping[str, str]) -> None:
    """Make a node compute in float32, and round its half outputs unless it is exact, but not inside its kernel."""
    halves = [value for value in node.outputs if value.dtype in HALF_TYPES]
    _widen_attribute(node)
    kernel = fused.get(origin(node))
    exact = is_exact(node) and kernel is None
    for value in halves:
        half = value.dtype
        assert half is not None
        value.type = _widened_type(value.type)
        if not exact and isinstance(value.type, ir.TensorType):
            rounded = _round_output(node, value, half)
            for use in [use for use in rounded.uses() if kernel and fused.get(origin(use.node)) == kernel]:
                use.node.replace_input_with(use.idx, value)


def _widened_type(kind: ir.TypeProtocol | None) -> ir.TypeProtocol:
    """Return the type with float32 in place of half, also in sequences and optionals (whose tensors are rounded already)."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return type(kind)(_widened_type(kind.elem_type))
    return ir.TensorType(ir.DataType.FLOAT)


def is_exact(node: ir.Node) -> bool:
    """Return whether the node's outputs are exact in half when its inputs are, so that they need no rounding."""
    if node.op_type not in EXACT_OPS or node.domain not in ("", "ai.onnx"):
        return False
    return not accumulates(node)


def _widen_attribute(node: ir.Node) -> None:
    """Turn casts to half into casts to float32, whose output is rounded like any other, and widen constants."""
    for name in ("to", "dtype"):
        attribute = node.attributes.get(name)
        if (
            attribute is not None
            and attribute.type is ir.AttributeType.INT
            and ir.DataType(attribute.as_int()) in HALF_TYPES
        ):
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    value = node.attributes.get("value")
    if value is not None and value.type is ir.AttributeType.TENSOR and (fmt := HALF_TYPES.get(value.as_tensor().dtype)):
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_widened(value.as_tensor(), fmt)))


def _round_output(node: ir.Node, value: ir.Value, half: ir.DataType) -> ir.Value:
    """Let all readers of `value` read it rounded, and return that; the name of a graph output moves to it."""
    assert node.graph is not None
    down = _cast(value, half, f"{value.name}_half")
    up = _cast(down.outputs[0], ir.DataType.FLOAT, f"{value.name}_rounded")
    rounded = up.outputs[0]
    name, was_output = value.name, value.is_graph_output()
    value.replace_all_uses_with(rounded, replace_graph_outputs=True)
    down.replace_input_with(0, value)
    up.replace_input_with(0, down.outputs[0])
    node.graph.insert_after(node, [down, up])
    value.meta[ROUNDED] = rounded
    if was_output:
        value.name, rounded.name = f"{name}_unrounded", name
    return rounded


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=f"demi_{name}")
    cast.outputs[0].name = name
    cast.outputs[0].shape = value.shape
    cast.outputs[0].type = ir.TensorType(dtype)
    return cast
