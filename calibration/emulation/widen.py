"""The half-precision emulator: what a mixed model computes where half is really half.

ONNX Runtime's CPU provider has hardly any half kernels. It wraps nodes in casts to float32 and removes the pairs it
can, so overflow and rounding between nodes disappear, and accuracy measured that way is false comfort.

`widen` takes the mixed model and makes it float32 throughout, with the value of every tensor that was half rounded
through half where it is made: `Cast(FLOAT16) -> Cast(FLOAT)`, a pair ONNX Runtime keeps. That is what a GPU does: it
stores operands and results in half and accumulates inside MatMul and Conv in single. Add, Sub, Mul, Div and Sqrt
computed in float32 and rounded once equal native half arithmetic bit for bit, since float32 carries more than twice
half's digits (Figueroa, "When is double rounding innocuous?", 1995).
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.calibration.emulation.kernels import spell_out
from demi.calibration.emulation.placement import place_behind
from demi.calibration.emulation.running_sums import accumulates
from demi.errors import ConversionError
from demi.float16 import BF16, FP16, Float32, HalfFormat, from_half

HALF_TYPES: dict[ir.DataType, HalfFormat] = {ir.DataType.FLOAT16: FP16, ir.DataType.BFLOAT16: BF16}

ROUNDED = "demi/rounded"
"""Where a widened tensor's metadata holds the rounded tensor that everyone reads in its place."""

EXACT_OPS = frozenset(
    """
    Abs Compress Concat ConcatFromSequence DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Max MaxPool
    Min Neg Pad ReduceMax ReduceMin Relu Reshape ReverseSequence ScatterElements ScatterND SequenceAt SequenceConstruct
    Slice SpaceToDepth Split SplitToSequence Squeeze Tile TopK Transpose Trilu Unsqueeze Where
    """.split()
)
"""Operators whose outputs are among their inputs' values (or exact in half when those are): nothing to round.

ScatterElements and ScatterND are here for their plain forms and for those that pick one of two; `is_exact` knows those
that compute.
"""


def widen(mixed: ir.Model, *, kernels: bool = True) -> ir.Model:
    """A float32 model that computes what `mixed` computes in half, rounding included; `mixed` is left alone.

    Half graph inputs keep their type and are cast; outputs that were half are float32, holding half's values.
    Weights keep their rounded values. With `kernels`, reductions round inside as CUDA's kernels do
    (`demi.calibration.emulation.kernels`); without, only what is stored between nodes is rounded. Types that `mixed` does not state
    are inferred; ConversionError names a tensor whose type cannot be told, since its rounding would be missed.
    """
    model = _typed(mixed.clone())
    if kernels:
        spell_out(model, lambda node: any(value.dtype in HALF_TYPES for value in node.outputs))
    for graph in (model.graph, *model.graph.subgraphs()):
        _widen_initializers(graph)
        _widen_inputs(graph, public=graph is model.graph)
    for node in list(model.graph.all_nodes()):
        _widen_node(node)
    return common.NameFixPass()(model).model  # the model's own names may look like those written here


def as_read(value: ir.Value) -> ir.Value:
    """What the readers of a tensor of a widened model get: the rounded one where it is rounded, else itself."""
    rounded: ir.Value = value.meta.get(ROUNDED, value)
    return rounded


def rounding_casts(model: ir.Model) -> int:
    """How many casts to a half type a model holds; each is one rounding the emulator spells out."""
    half = {int(dtype) for dtype in HALF_TYPES}
    return sum(node.op_type == "Cast" and node.attributes["to"].as_int() in half for node in model.graph.all_nodes())


def _typed(model: ir.Model) -> ir.Model:
    """The model with a type for every tensor that is read and might be half."""
    if _untyped(model):
        model = common.ShapeInferencePass(check_type=False, strict_mode=False)(model).model
    if unknown := [value for value in _untyped(model) if _may_be_half(value)]:
        raise ConversionError(
            f"the type of `{unknown[0].name}` cannot be told, so it cannot be emulated",
            hint="state the types of inner tensors in the model (value_info)",
        )
    return model


def _may_be_half(value: ir.Value) -> bool:
    """Whether a tensor without a type comes from half ones; a custom operator on float32 is taken to give float32."""
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
        for use in value.uses():  # an output that is the input itself stays half
            use.node.replace_input_with(use.idx, cast.outputs[0])
        cast.replace_input_with(0, value)
        place_behind(value, [cast])


def _widen_node(node: ir.Node) -> None:
    """Make a node compute in float32 and round the half outputs it really rounds."""
    halves = [value for value in node.outputs if value.dtype in HALF_TYPES]
    _widen_attribute(node)
    exact = is_exact(node)
    for value in halves:
        half = value.dtype
        assert half is not None
        value.type = _widened_type(value.type)
        if not exact and isinstance(value.type, ir.TensorType):
            _round_output(node, value, half)


def _widened_type(kind: ir.TypeProtocol | None) -> ir.TypeProtocol:
    """float32 in place of half, in sequences and optionals of tensors as well (their tensors are rounded already)."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return type(kind)(_widened_type(kind.elem_type))
    return ir.TensorType(ir.DataType.FLOAT)


def is_exact(node: ir.Node) -> bool:
    """Whether every output of the node is half when its inputs are: nothing to round."""
    if node.op_type not in EXACT_OPS or node.domain not in ("", "ai.onnx"):
        return False
    return not accumulates(node)


def _widen_attribute(node: ir.Node) -> None:
    """Casts to half become casts to float32 (their output is rounded like any other); typed constants widen."""
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


def _round_output(node: ir.Node, value: ir.Value, half: ir.DataType) -> None:
    """Everyone who reads `value` reads it rounded; public names stay with what is read."""
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


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=f"demi_{name}")
    cast.outputs[0].name = name
    cast.outputs[0].shape = value.shape
    cast.outputs[0].type = ir.TensorType(dtype)
    return cast
