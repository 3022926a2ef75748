"""Propagation of exponents through one node: from its operands to its outputs.

This is the checker's own knowledge of operators, and it shares nothing with the solver's. Each function takes a node as it
is in the rescaled model and the exponents of its inputs, and answers with those of its outputs, or raises `RefusedError`. None
stands for zeros, which any exponent fits. Where every exponent is 0 nothing is claimed, and every operator is fine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

Exponent = int | None
"""2^e times the original; None for zeros."""

STANDARD = ("", "ai.onnx")


class RefusedError(Exception):
    """A node whose outputs are not the original's at any one scale."""


@dataclass(frozen=True, slots=True)
class Claims:
    """A node's operands: their exponents by position, and those of the numbers in its attributes."""

    node: ir.Node
    inputs: Sequence[Exponent]
    numbers: Mapping[str, int]

    def at(self, position: int) -> Exponent:
        """Return the exponent of an input; that of zeros if it is omitted."""
        return self.inputs[position] if self.has(position) else None

    def has(self, position: int) -> bool:
        """Return whether an input exists."""
        return position < len(self.node.inputs) and self.node.inputs[position] is not None

    def number(self, name: str) -> int:
        """Return the exponent of the number in an attribute."""
        return self.numbers.get(name, 0)


Forward = Callable[[Claims], Sequence[Exponent]]


def forward(claims: Claims) -> list[Exponent]:
    """Return the exponents of a node's outputs. Raises RefusedError if its operands' exponents do not fit."""
    count = len(claims.node.outputs)
    is_scaled = any(claims.inputs) or any(claims.numbers.values())
    unknown = [name for name, exponent in claims.numbers.items() if exponent and not _may_scale(claims.node, name)]
    if unknown:
        raise RefusedError(f"the attribute `{unknown[0]}` must keep its number")
    function = (FORWARD if is_scaled or None in claims.inputs else _MAKES_ZEROS).get(_key(claims.node))
    if function is None and is_scaled:
        raise RefusedError(f"nothing is known of how {claims.node.op_type} scales")
    try:
        made = list(function(claims))[:count] if function is not None else []
    except RefusedError:
        if is_scaled:
            raise
        made = []  # nothing but zeros, and what is as it was
    return made + [0] * (count - len(made))


def _may_scale(node: ir.Node, attribute: str) -> bool:
    """Return whether the operator's function takes the exponent of this attribute into account."""
    if attribute == "epsilon":
        return node.op_type.endswith("Normalization") and FORWARD.get(_key(node)) is not _unit_length
    return (node.op_type, attribute) in {("Clip", "min"), ("Clip", "max"), ("Pad", "value")}


def _key(node: ir.Node) -> str:
    return node.op_type if node.domain in STANDARD else f"{node.domain}:{node.op_type}"


def same(*exponents: Exponent) -> Exponent:
    """Return the exponent that all of these have; zeros have any."""
    known = {each for each in exponents if each is not None}
    if len(known) > 1:
        raise RefusedError(f"operands of different scales meet: 2^{min(known)} and 2^{max(known)}")
    return known.pop() if known else None


def fixed(*exponents: Exponent) -> None:
    """Raise RefusedError unless all of these have exponent 0."""
    if any(exponents):
        raise RefusedError("an operand is scaled that must keep its scale")


def product(*exponents: Exponent) -> Exponent:
    """Return the exponent of a product; None if a factor is zero."""
    known = [each for each in exponents if each is not None]
    return sum(known) if len(known) == len(exponents) else None


def _passes(c: Claims) -> Sequence[Exponent]:
    """Return the exponent of the first input; all others must have exponent 0."""
    fixed(*c.inputs[1:])
    return [c.at(0)] * (len(c.node.outputs) if c.node.op_type == "Split" else 1)


def _together(c: Claims) -> Sequence[Exponent]:
    return [same(*c.inputs)]


def _times(c: Claims) -> Sequence[Exponent]:
    return [product(*c.inputs)]


def _affine(c: Claims) -> Sequence[Exponent]:
    made = product(c.at(0), c.at(1))
    return [same(made, c.at(2)) if c.has(2) else made]


def _divided(c: Claims) -> Sequence[Exponent]:
    above, below = c.at(0), c.at(1)
    return [None if above is None or below is None else above - below]


def _inverse(c: Claims) -> Sequence[Exponent]:
    below = c.at(0)
    return [None if below is None else -below]


def _root(c: Claims) -> Sequence[Exponent]:
    inside = c.at(0)
    if inside is not None and inside % 2:
        raise RefusedError(f"the root of an odd power of two, 2^{inside}, is not a power of two")
    return [None if inside is None else inside // 2]


def _squares(c: Claims) -> Sequence[Exponent]:
    fixed(*c.inputs[1:])
    return [product(c.at(0), c.at(0))]


def _raised(c: Claims) -> Sequence[Exponent]:
    """Return the exponent of a square or cube, which are products; other powers are computed by logarithms."""
    fixed(c.at(1))
    power = c.node.inputs[1]
    if power is None or power.const_value is None or power.const_value.size != 1 or power.is_graph_input():
        raise RefusedError("a power that is computed scales by no one number")
    times = float(power.const_value.numpy().reshape(-1)[0])
    if times not in (2.0, 3.0):
        raise RefusedError(f"the power {times:g} is not a product")
    return [product(*[c.at(0)] * int(times))]


def _picked(c: Claims) -> Sequence[Exponent]:
    return [same(*c.inputs[1:3])]


def _scattered(c: Claims) -> Sequence[Exponent]:
    attribute = c.node.attributes.get("reduction")
    if attribute is not None and attribute.as_string() == "mul":
        raise RefusedError("what is scattered is multiplied with what is there")
    return [same(c.at(0), c.at(2))]


def _clipped(c: Claims) -> Sequence[Exponent]:
    bounds = [c.number(name) for name in ("min", "max") if name in c.node.attributes]
    return [same(c.at(0), *c.inputs[1:], *bounds)]


def _padded(c: Claims) -> Sequence[Exponent]:
    attribute = c.node.attributes.get("value")
    if attribute is not None:
        return [same(c.at(0), c.number("value") if attribute.as_float() else None)]
    return [same(c.at(0), c.at(2))]


def _resized(c: Claims) -> Sequence[Exponent]:
    mode = c.node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() == "tf_crop_and_resize":
        raise RefusedError("beyond a crop stands a number that is not scaled")
    return _passes(c)


def _dropped(c: Claims) -> Sequence[Exponent]:
    if c.has(2):
        raise RefusedError("a Dropout that may train")
    return _passes(c)


def _cast(c: Claims) -> Sequence[Exponent]:
    """Rounding commutes with a power of two in the normal range; a cast to bool only depends on zeros."""
    kind = ir.DataType(c.node.attributes["to"].as_int())
    if kind is ir.DataType.BOOL:
        return [0]
    if kind not in FLOATS:
        raise RefusedError("a scaled tensor becomes integers")
    return [c.at(0)]


def _ranked(c: Claims) -> Sequence[Exponent]:
    fixed(*c.inputs[1:])
    return [c.at(0), 0]


def _asked(c: Claims) -> Sequence[Exponent]:
    """The result does not depend on the scale."""
    fixed(*c.inputs[1:])
    return [0]


def _compared(c: Claims) -> Sequence[Exponent]:
    same(*c.inputs)
    return [0]


def _one_hot(c: Claims) -> Sequence[Exponent]:
    fixed(*c.inputs[:2])
    return [c.at(2)]


def _dequantized(c: Claims) -> Sequence[Exponent]:
    fixed(c.at(0), c.at(2))
    return [c.at(1)]


def _quantized(c: Claims) -> Sequence[Exponent]:
    same(c.at(0), c.at(1))
    return [0]


def _epsilon(c: Claims, inside: Exponent) -> None:
    """An epsilon added to a variance is scaled like the variance, by the square of the input's scale."""
    wanted = None if inside is None else 2 * inside
    if wanted is not None and c.number("epsilon") != wanted:
        raise RefusedError(f"epsilon is scaled by 2^{c.number('epsilon')}, and what it is added to by 2^{wanted}")


def _normalized(scale: int, bias: int, added: Sequence[int] = ()) -> Forward:
    """Normalization of the first input, plus other addends; then mean, inverse deviation and the sum."""

    def function(c: Claims) -> Sequence[Exponent]:
        inside = same(c.at(0), *(c.at(i) for i in added if c.has(i)))
        _epsilon(c, inside)
        made = same(c.at(scale), *([c.at(bias)] if bias and c.has(bias) else []))
        if inside is None and len(c.node.outputs) > 1 and c.number("epsilon"):
            raise RefusedError("zeros are normalized with a scaled epsilon, which the inverse deviation shows")
        inverse = 0 if inside is None else -inside
        simple = "Simplified" in c.node.op_type and not added
        return [made, inverse] if simple else [made, inside, inverse, inside]

    return function


def _batch_normalized(c: Claims) -> Sequence[Exponent]:
    """scale (x - mean) / sqrt(variance + epsilon) + bias, in inference."""
    training = c.node.attributes.get("training_mode")
    if len(c.node.outputs) > 1 or (training is not None and training.as_int()):
        raise RefusedError("a BatchNormalization that trains")
    variance = same(c.at(4), c.number("epsilon"))
    if variance is not None and variance % 2:
        raise RefusedError(f"the root of an odd power of two, 2^{variance}, is not a power of two")
    centred = same(c.at(0), c.at(3))
    made = product(centred, c.at(1), -(variance or 0) // 2)
    return [same(made, c.at(2))]


def _unit_length(c: Claims) -> Sequence[Exponent]:
    return [0]


def _attended(c: Claims) -> Sequence[Exponent]:
    """softmax(Q K^T) V: the scales of queries and keys cancel."""
    keys, values = (4, 5) if c.node.op_type == "Attention" else (6, 7)
    if c.node.op_type == "MultiHeadAttention" and (not (c.has(1) and c.has(2)) or c.has(3)):
        raise RefusedError("queries, keys and values that come together, or with a bias")
    key = same(c.at(1), c.at(keys)) if c.has(keys) else c.at(1)
    value = same(c.at(2), c.at(values)) if c.has(values) else c.at(2)
    if product(c.at(0), key):
        raise RefusedError("scores are scaled before a softmax")
    fixed(*(each for i, each in enumerate(c.inputs) if i > 2 and i not in (keys, values)))
    return [value, key, value]


def _zeros(c: Claims) -> Sequence[Exponent]:
    attribute = c.node.attributes.get("value")
    return [0 if attribute is not None and attribute.as_tensor().numpy().any() else None]


FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

PASSES = frozenset(
    "Identity Reshape Transpose Slice Gather GatherElements GatherND Expand Tile Squeeze Unsqueeze Flatten "
    "DepthToSpace SpaceToDepth ReverseSequence Trilu Compress Relu LeakyRelu PRelu Abs Neg MaxPool AveragePool "
    "GlobalAveragePool GlobalMaxPool MaxUnpool MaxRoiPool RoiAlign GridSample ReduceSum ReduceMean ReduceMax ReduceMin "
    "ReduceL1 ReduceL2 CumSum Upsample CenterCropPad Col2Im RotaryEmbedding com.microsoft:RotaryEmbedding Split".split()
)

FORWARD: dict[str, Forward] = {
    **dict.fromkeys(PASSES, _passes),
    **dict.fromkeys("Add Sub Sum Mean Max Min Concat".split(), _together),
    **dict.fromkeys("Mul MatMul Einsum com.microsoft:FusedMatMul".split(), _times),
    **dict.fromkeys("Gemm Conv ConvTranspose".split(), _affine),
    **dict.fromkeys("ScatterElements ScatterND Scatter".split(), _scattered),
    **dict.fromkeys("ArgMax ArgMin Shape Size NonZero IsNaN IsInf Sign Hardmax".split(), _asked),
    **dict.fromkeys("Less Greater LessOrEqual GreaterOrEqual Equal".split(), _compared),
    "Where": _picked,
    "Clip": _clipped,
    "Pad": _padded,
    "Div": _divided,
    "Reciprocal": _inverse,
    "Sqrt": _root,
    "Pow": _raised,
    "ReduceSumSquare": _squares,
    "Resize": _resized,
    "Dropout": _dropped,
    "Cast": _cast,
    "TopK": _ranked,
    "OneHot": _one_hot,
    "DequantizeLinear": _dequantized,
    "QuantizeLinear": _quantized,
    "LayerNormalization": _normalized(1, 2),
    "SimplifiedLayerNormalization": _normalized(1, 0),
    "RMSNormalization": _normalized(1, 0),
    "InstanceNormalization": _normalized(1, 2),
    "GroupNormalization": _normalized(1, 2),
    "com.microsoft:SkipLayerNormalization": _normalized(2, 3, (1, 4)),
    "com.microsoft:SkipSimplifiedLayerNormalization": _normalized(2, 0, (1, 3)),
    "BatchNormalization": _batch_normalized,
    "LpNormalization": _unit_length,
    "Attention": _attended,
    "com.microsoft:MultiHeadAttention": _attended,
}
"""Propagation of exponents through each operator, by name, with the domain in front if it is not ONNX's own."""

_MAKES_ZEROS: dict[str, Forward] = {
    "ConstantOfShape": _zeros,
}
"""Operators that may return zeros for operands with exponent 0."""
