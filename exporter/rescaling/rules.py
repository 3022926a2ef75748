"""Passage of powers of two through operators: one row for each, with the equations of its operands' exponents.

A tensor of exponent e holds 2^e times its old numbers. Multiplying by 2^k commutes with every correctly rounded sum,
difference, product, quotient, fused multiply-add and root (of even k), in any order of summation, barring overflow and
subnormal numbers: where its row's equations hold, an operator gives the same bits, scaled. An operator without a row is
pinned, with exponent 0 all around it, and so is an operand that its row does not name.

Slots are written `i0` (an input), `o0` (an output), `a:epsilon` (an attribute) and `x:scale` (a number of the row's own).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

Terms = Mapping[str, int]
"""Slots with their coefficients: the sum of coefficient times exponent is 0."""

CONTRIB = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Row:
    """Equations between the exponents of an operator's operands."""

    equations: tuple[Terms, ...]
    free: frozenset[str] = frozenset()
    """Operands whose scale does not matter: an argument of ArgMax, say."""


Rule = Callable[[ir.Node], Row | None]
"""The row of a node; None where its attributes or operands make it one that is pinned."""


def number_of(node: ir.Node, name: str) -> float | None:
    """The number in a node's attribute, or the default of ONNX's schema; None where neither says it."""
    if name in node.attributes:
        return node.attributes[name].as_float()
    try:
        default = onnx.defs.get_schema(node.op_type, domain=node.domain).attributes[name].default_value
    except (onnx.defs.SchemaError, KeyError):
        return None
    return float(default.f) if default.type == onnx.AttributeProto.FLOAT else None


def row_of(node: ir.Node) -> Row | None:
    """The row of a node's operator; None for one that is pinned."""
    rule = ROWS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
    return rule(node) if rule is not None else None


def tied(*slots: str) -> tuple[Terms, ...]:
    """All of these slots have one exponent."""
    return tuple({slots[0]: 1, other: -1} for other in slots[1:])


def moves(data: str = "i0") -> Rule:
    """One operand goes through, or is multiplied by what does not change."""
    return _always(*tied(data, "o0"))


def equal(*inputs: str) -> Rule:
    """These inputs and the result have one exponent."""
    return _always(*tied("o0", *inputs))


def _always(*equations: Terms, free: tuple[str, ...] = ()) -> Rule:
    row = Row(tuple(equations), frozenset(free))
    return lambda node: row


def _all_inputs(node: ir.Node) -> Row:
    return Row(tied("o0", *(f"i{i}" for i in range(len(node.inputs)))))


def _product(node: ir.Node) -> Row:
    """The result of any number of factors."""
    return Row((_sum_of("o0", *(f"i{i}" for i in range(len(node.inputs)))),))


def _sum_of(result: str, *slots: str) -> Terms:
    return {result: 1, **dict.fromkeys(slots, -1)}


def _linear(node: ir.Node) -> Row:
    """A product with a bias: Gemm, Conv and their like."""
    return Row((_sum_of("o0", "i0", "i1"), *tied("o0", "i2")))


def _splits(node: ir.Node) -> Row:
    return Row(tied("i0", *(f"o{i}" for i in range(len(node.outputs)))))


def _adds_or_picks(node: ir.Node) -> Row | None:
    """A scatter, which may add, or take the larger, but not multiply."""
    reduction = node.attributes.get_string("reduction", "none")
    return Row(tied("o0", "i0", "i2")) if reduction in ("none", "add", "max", "min") else None


def _clip(node: ir.Node) -> Row:
    """Its bounds are scaled, too; before opset 11 they are attributes."""
    bounds = [f"a:{name}" for name in ("min", "max") if name in node.attributes]
    return Row(tied("o0", "i0", "i1", "i2") + tied("o0", *bounds))


def _pad(node: ir.Node) -> Row:
    """The number that it pads with is scaled, too; before opset 11 it is an attribute."""
    value = ("a:value",) if "value" in node.attributes else ()
    return Row(tied("o0", "i0", "i2") + tied("o0", *value))


def _power(node: ir.Node) -> Row | None:
    """A square or a cube, which ONNX Runtime multiplies; other powers are no correctly rounded operation."""
    exponent = node.inputs[1]
    constant = exponent.const_value if exponent is not None and not exponent.is_graph_input() else None
    if constant is None or constant.size != 1:
        return None
    power = float(constant.numpy().reshape(-1)[0])
    return Row(({"o0": 1, "i0": -int(power)}, {"i1": 1})) if power in (2.0, 3.0) else None


def _resize(node: ir.Node) -> Row | None:
    """Interpolation; what lies beyond a crop has a number of its own."""
    crops = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    return None if crops else Row(tied("i0", "o0"))


def _dropout(node: ir.Node) -> Row | None:
    trains = len(node.inputs) > 2 and node.inputs[2] is not None
    return None if trains else Row(tied("i0", "o0"))


def _cast(node: ir.Node) -> Row | None:
    """A cast that changes nothing; to bool it asks for zero alone."""
    target = node.attributes["to"].as_int()
    if target == ir.DataType.FLOAT:
        return Row(tied("i0", "o0"))
    return Row((), frozenset({"i0"})) if target == ir.DataType.BOOL else None


def _normalization(scale: str, bias: str = "", same: tuple[str, ...] = (), **outputs: str) -> Rule:
    """The input is free: epsilon follows it, and the result has the exponent of scale and bias.

    `same` are inputs that are added to the first; `outputs` says which further outputs hold the statistics.
    """
    equations: list[Terms] = [*tied("o0", scale), *tied("i0", *same), {"a:epsilon": 1, "i0": -2}]
    if bias:
        equations += tied("o0", bias)
    equations += (terms for name in ("mean", "sum") if name in outputs for terms in tied("i0", outputs[name]))
    if "inverse" in outputs:
        equations.append({outputs["inverse"]: 1, "i0": 1})
    row = Row(tuple(equations))
    return lambda node: row if number_of(node, "epsilon") is not None else None


def _batch_normalization(node: ir.Node) -> Row | None:
    """scale / sqrt(variance + epsilon) takes an exponent of its own, -m, whatever that of the input is."""
    trains = node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1
    if trains or "spatial" in node.attributes or number_of(node, "epsilon") is None:
        return None
    return Row(
        (
            *tied("i0", "i3"),
            {"i4": 1, "x:m": -2},
            {"a:epsilon": 1, "x:m": -2},
            {"o0": 1, "i0": -1, "i1": -1, "x:m": 1},
            *tied("o0", "i2"),
        )
    )


def _attention(node: ir.Node) -> Row | None:
    """Scores must keep their scale; queries may give to keys what they lose."""
    return Row(
        (
            {"i0": 1, "i1": 1},
            *tied("i2", "o0"),
            *tied("i1", "i4", "o1"),
            *tied("i2", "i5", "o2"),
        )
    )


def _multi_head_attention(node: ir.Node) -> Row | None:
    """As Attention, where queries, keys and values come apart and without a bias."""
    present = [value is not None for value in node.inputs]
    if present[:3] != [True, True, True] or any(present[3:4]):
        return None
    return Row(({"i0": 1, "i1": 1}, *tied("i2", "o0"), *tied("i1", "i6", "o1"), *tied("i2", "i7", "o2")))


def _zeros(node: ir.Node) -> Row | None:
    """Zeros have whatever exponent they need."""
    value = node.attributes.get("value")
    return Row((), frozenset({"o0"})) if value is None or not value.as_tensor().numpy().any() else None


MOVES = (
    "Identity Reshape Transpose Slice Gather GatherElements GatherND Expand Tile Squeeze Unsqueeze Flatten DepthToSpace "
    "SpaceToDepth ReverseSequence Trilu Compress Relu LeakyRelu PRelu Abs Neg MaxPool AveragePool GlobalAveragePool "
    "GlobalMaxPool MaxUnpool MaxRoiPool RoiAlign GridSample ReduceSum ReduceMean ReduceMax ReduceMin ReduceL1 ReduceL2 "
    "CumSum TopK Upsample CenterCropPad Col2Im RotaryEmbedding"
).split()

SCALE_IS_ALL_THE_SAME = "ArgMax ArgMin Shape Size NonZero IsNaN IsInf Sign Hardmax".split()

COMPARISONS = "Less Greater LessOrEqual GreaterOrEqual Equal".split()

ROWS: dict[tuple[str, str], Rule] = {
    **{("", op): moves() for op in MOVES},
    **{("", op): _always(free=("i0",)) for op in SCALE_IS_ALL_THE_SAME},
    **{("", op): _always(*tied("i0", "i1")) for op in COMPARISONS},
    **{("", op): equal("i0", "i1") for op in ("Add", "Sub")},
    **{("", op): _all_inputs for op in ("Sum", "Mean", "Max", "Min", "Concat")},
    **{("", op): _product for op in ("Mul", "MatMul", "Einsum")},
    **{("", op): _linear for op in ("Gemm", "Conv", "ConvTranspose")},
    **{("", op): _adds_or_picks for op in ("ScatterElements", "ScatterND", "Scatter")},
    ("", "Where"): equal("i1", "i2"),
    ("", "Clip"): _clip,
    ("", "Pad"): _pad,
    ("", "Split"): _splits,
    ("", "Div"): _always({"o0": 1, "i0": -1, "i1": 1}),
    ("", "Reciprocal"): _always({"o0": 1, "i0": 1}),
    ("", "Sqrt"): _always({"o0": 2, "i0": -1}),
    ("", "Pow"): _power,
    ("", "ReduceSumSquare"): _always({"o0": 1, "i0": -2}),
    ("", "Resize"): _resize,
    ("", "Dropout"): _dropout,
    ("", "Cast"): _cast,
    ("", "ConstantOfShape"): _zeros,
    ("", "OneHot"): moves("i2"),
    ("", "DequantizeLinear"): moves("i1"),
    ("", "QuantizeLinear"): _always(*tied("i0", "i1")),
    ("", "LayerNormalization"): _normalization("i1", "i2", mean="o1", inverse="o2"),
    ("", "SimplifiedLayerNormalization"): _normalization("i1", inverse="o1"),
    ("", "RMSNormalization"): _normalization("i1"),
    ("", "InstanceNormalization"): _normalization("i1", "i2"),
    ("", "GroupNormalization"): _normalization("i1", "i2"),
    ("", "BatchNormalization"): _batch_normalization,
    ("", "LpNormalization"): _always(free=("i0",)),
    ("", "Attention"): _attention,
    (CONTRIB, "FusedMatMul"): _product,
    (CONTRIB, "RotaryEmbedding"): moves(),
    (CONTRIB, "SkipLayerNormalization"): _normalization(
        "i2", "i3", same=("i1", "i4"), mean="o1", inverse="o2", sum="o3"
    ),
    (CONTRIB, "SkipSimplifiedLayerNormalization"): _normalization(
        "i2", same=("i1", "i3"), mean="o1", inverse="o2", sum="o3"
    ),
    (CONTRIB, "MultiHeadAttention"): _multi_head_attention,
}
"""The rows, by domain and operator."""
