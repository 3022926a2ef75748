"""Propagation of exponents that differ by channel through one node: the checker's second table of operators.

A scale is a whole number, or an array of them that broadcasts with the tensor: shape (C,) for the columns of a matrix,
(C, 1, 1) for the channels of an image. An operator computes the same numbers, scaled, where every number that it adds up
or compares has one scale. Operators that are not in the table are refused, and so is a node whose ranks are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from demi.calibration.rescaling.forward import STANDARD, Claims, Exponent, RefusedError, forward

Array = NDArray[np.int64]

Scale = Exponent | Array
"""The exponent of a tensor, or an array of them; None for zeros."""

MOST = 1 << 26
"""Products of scales that one node may need: 512 MiB."""

_By = Callable[[ir.Node, Sequence[Scale], Mapping[str, int]], Sequence[Scale]]


def differ(scale: Scale) -> bool:
    """Return whether a scale is one by channel."""
    return isinstance(scale, np.ndarray)


def simplest(scale: Scale) -> Scale:
    """Return a scale as one number if all channels have the same."""
    if not isinstance(scale, np.ndarray):
        return scale
    first = int(scale.flat[0])
    return first if bool((scale == first).all()) else scale


def forward_by_channel(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> list[Scale]:
    """Return the scales of a node's outputs. Raises RefusedError if those of its operands do not fit."""
    name = node.op_type if node.domain in STANDARD else f"{node.domain}:{node.op_type}"
    function = BY_CHANNEL.get(name)
    if function is None:
        raise RefusedError(f"nothing is known of how {node.op_type} scales by channel")
    try:
        made = [simplest(each) for each in function(node, inputs, numbers)]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise RefusedError(f"the scales of channels do not fit: {error}") from error
    if any(len(node.outputs) > len(made) and each.uses() for each in node.outputs[len(made) :]):
        raise RefusedError("an output whose scale is not known is read")
    return (made + [0] * len(node.outputs))[: len(node.outputs)]


def together(*scales: Scale) -> Scale:
    """Return the scale of a sum, whose terms must have the same for each element."""
    known = [np.asarray(each, np.int64) for each in scales if each is not None]
    if not known:
        return None
    terms = np.broadcast_arrays(*known)
    if any(not np.array_equal(terms[0], other) for other in terms[1:]):
        raise RefusedError("operands whose channels have different scales meet")
    return terms[0]


def _product(*scales: Scale) -> Scale:
    if any(each is None for each in scales):
        return None
    total = np.zeros((), np.int64)
    for each in scales:
        total = total + np.asarray(each, np.int64)
    return total


def _fixed(*scales: Scale) -> None:
    if any(each is not None and bool(np.any(each)) for each in scales):
        raise RefusedError("an operand is scaled that must keep its scale")


def _moves(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    _fixed(*inputs[1:])
    return [inputs[0]]


def _sum(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    return [together(*inputs)]


def _times(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    return [_product(*inputs)]


def _picked(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    return [together(*inputs[1:3])]


def _divided(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    above, below = inputs[0], inputs[1]
    return [None if above is None or below is None else np.asarray(above, np.int64) - np.asarray(below, np.int64)]


def _cast(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    made = forward(Claims(node, [1], numbers))[0]  # with a scale that is one number: kept, forgotten or refused
    return [inputs[0] if made else 0]


def _rank(value: ir.Value | None) -> int:
    """Return the rank of a tensor. Raises RefusedError if it is not known."""
    if value is None or value.shape is None:
        raise RefusedError("the rank of an operand is not known")
    return len(value.shape)


def _at_least(scale: Scale, rank: int) -> Array:
    """Return a scale with ones in front of its shape, for a tensor of that rank."""
    array = np.asarray(scale, np.int64)
    if array.ndim > rank:
        raise RefusedError(f"scales of {array.ndim} dimensions for a tensor of {rank}")
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _contracted(left: Array, right: Array) -> Array:
    """Return the scales of a matrix product: [..., m, k] and [..., k, n] to [..., m, n]."""
    if int(np.prod(left.shape[-2:])) * right.shape[-1] > MOST:
        raise RefusedError("too many scales")
    terms = left[..., :, :, None] + right[..., None, :, :]
    first = terms[..., :1, :]
    if not bool((terms == first).all()):
        raise RefusedError("products of different scales are added up")
    return np.asarray(first[..., 0, :])


def _matmul(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    if inputs[0] is None or inputs[1] is None:
        return [None]
    if min(_rank(node.inputs[0]), _rank(node.inputs[1])) < 2:
        raise RefusedError("a product with a vector")
    return [_contracted(_at_least_two(inputs[0]), _at_least_two(inputs[1]))]


def _at_least_two(scale: Scale) -> Array:
    return _at_least(scale, max(2, np.ndim(np.asarray(scale))))


def _gemm(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    bias = inputs[2] if len(inputs) > 2 and node.inputs[2] is not None else None
    if inputs[0] is None or inputs[1] is None:
        return [together(bias)]
    left, right = _at_least(inputs[0], 2), _at_least(inputs[1], 2)
    if node.attributes.get_int("transA", 0):
        left = left.T
    if node.attributes.get_int("transB", 0):
        right = right.T
    return [together(_contracted(left, right), bias)]


def _conv(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    """[N, I, ...] with a kernel of [O, I / groups, ...]: each output channel adds up those of its group."""
    kernel, spatial = _kernel(node)
    bias = inputs[2] if len(inputs) > 2 and node.inputs[2] is not None else None
    if inputs[0] is None or inputs[1] is None:
        return [None if bias is None else _of_channels(np.asarray(bias, np.int64).reshape(-1), spatial)]
    groups = node.attributes.get_int("group", 1)
    made, each = kernel[0], kernel[1]
    read = np.broadcast_to(_by_channel(inputs[0], spatial), (groups * each,)).reshape(groups, each)
    weight = np.broadcast_to(_without_space(inputs[1], spatial), (made, each))
    terms = weight + read[np.arange(made) * groups // made]
    if not bool((terms == terms[:, :1]).all()):
        raise RefusedError("products of different scales are added up")
    return [_of_channels(np.asarray(together(terms[:, 0], bias)), spatial)]


def _conv_transpose(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    """[N, I, ...] with a kernel of [I, O, ...]."""
    kernel, spatial = _kernel(node)
    if node.attributes.get_int("group", 1) != 1 or inputs[0] is None or inputs[1] is None:
        raise RefusedError("a ConvTranspose in groups")
    read = np.broadcast_to(_by_channel(inputs[0], spatial), (kernel[0],))
    terms = np.broadcast_to(_without_space(inputs[1], spatial), kernel[:2]) + read[:, None]
    if not bool((terms == terms[:1]).all()):
        raise RefusedError("products of different scales are added up")
    bias = inputs[2] if len(inputs) > 2 and node.inputs[2] is not None else None
    return [_of_channels(np.asarray(together(terms[0], bias)), spatial)]


def _kernel(node: ir.Node) -> tuple[tuple[int, ...], int]:
    """Return the shape of a convolution's kernel, and how many of its dimensions are of space."""
    constant = node.inputs[1].const_value if node.inputs[1] is not None else None
    if constant is None:
        raise RefusedError("a kernel that is not a constant")
    shape = tuple(constant.shape.numpy())
    return shape, len(shape) - 2


def _by_channel(scale: Scale, spatial: int) -> Array:
    """Return the scale of each channel of an image, in which all pixels must have the same."""
    array = _at_least(scale, 1 + spatial)
    if any(size != 1 for size in array.shape[1:]):
        raise RefusedError("the pixels of a channel have different scales")
    return array.reshape(-1)


def _without_space(scale: Scale, spatial: int) -> Array:
    array = _at_least(scale, 2 + spatial)
    if any(size != 1 for size in array.shape[2:]):
        raise RefusedError("the numbers of a kernel have different scales")
    return array.reshape(array.shape[:2])


def _of_channels(scales: Array, spatial: int) -> Array:
    return scales.reshape(-1, *(1,) * spatial)


def _pool(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    spatial = len(node.attributes["kernel_shape"].as_ints())
    return [_of_channels(_by_channel(inputs[0], spatial), spatial)]


def _global_pool(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    spatial = _rank(node.inputs[0]) - 2
    return [_of_channels(_by_channel(inputs[0], spatial), spatial)]


def _transpose(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    order = node.attributes["perm"].as_ints()
    return [_at_least(inputs[0], len(order)).transpose(order)]


def _reshape(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    """The last dimensions, split or joined: their elements stay in order."""
    _fixed(*inputs[1:])
    array = np.asarray(inputs[0], np.int64)
    array = array.reshape(array.shape[next(i for i, size in enumerate(array.shape) if size != 1) :])
    if 1 in array.shape:
        raise RefusedError("a dimension whose size is not known is reshaped")
    wanted: list[int] = []
    for size in reversed(_sizes(node)):
        if np.prod(wanted, dtype=np.int64) == array.size:
            break
        if size < 1:
            raise RefusedError("a shape that is not known")
        wanted.insert(0, size)
    return [array.reshape(wanted)]


def _sizes(node: ir.Node) -> list[int]:
    """Return the shape that a Reshape makes: what its constant says, and where that leaves it open its output; else 0."""
    constant = node.inputs[1].const_value if node.inputs[1] is not None else None
    if constant is None:
        raise RefusedError("a shape that is computed")
    given = [int(size) for size in constant.numpy().reshape(-1)]
    shape = node.outputs[0].shape
    known = list(shape) if shape is not None and len(shape) == len(given) else [None] * len(given)
    return [
        size if size > 0 else other if isinstance(other, int) else 0 for size, other in zip(given, known, strict=True)
    ]


def _normalized(scale: int, bias: int) -> _By:
    """The result has the scales of scale and bias; all else is as if they had none."""

    def function(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
        others = [0 if i in (scale, bias) and i else each for i, each in enumerate(inputs)]
        plain: list[Exponent] = []
        for each in others:
            if isinstance(each, np.ndarray):
                raise RefusedError("the channels that a normalization adds up have different scales")
            plain.append(each)
        made = forward(Claims(node, plain, numbers))
        given = [inputs[i] for i in (scale, bias) if i and i < len(inputs) and node.inputs[i] is not None]
        return [together(*given), *made[1:]]

    return function


def _batch_normalized(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    """[N, C, ...], in inference: every channel has numbers of its own but for epsilon, so that variances have one scale."""
    training = node.attributes.get("training_mode")
    if len(node.outputs) > 1 or (training is not None and training.as_int()):
        raise RefusedError("a BatchNormalization that trains")
    spatial = _rank(node.inputs[0]) - 2
    variance = simplest(together(inputs[4], numbers.get("epsilon", 0)))
    if isinstance(variance, np.ndarray) or (variance or 0) % 2:
        raise RefusedError("variances of different scales, or of an odd power of two")
    centred = together(None if inputs[0] is None else _by_channel(inputs[0], spatial), inputs[3])
    made = together(_product(centred, inputs[1], -(variance or 0) // 2), inputs[2])
    return [None if made is None else _of_channels(np.asarray(made, np.int64), spatial)]


def _normalized_images(node: ir.Node, inputs: Sequence[Scale], numbers: Mapping[str, int]) -> Sequence[Scale]:
    """[N, C, ...]: the result has the scales of scale and bias, which are by channel."""
    (made,) = _normalized(1, 2)(node, inputs, numbers)[:1]
    return [None if made is None else _of_channels(np.asarray(made, np.int64), _rank(node.inputs[0]) - 2)]


BY_CHANNEL: dict[str, _By] = {
    **dict.fromkeys("Identity Relu LeakyRelu Abs Neg".split(), _moves),
    **dict.fromkeys("Add Sub Sum Mean Max Min".split(), _sum),
    "Mul": _times,
    "Div": _divided,
    "Where": _picked,
    "Cast": _cast,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "LayerNormalization": _normalized(1, 2),
    "SimplifiedLayerNormalization": _normalized(1, 0),
    "RMSNormalization": _normalized(1, 0),
    "BatchNormalization": _batch_normalized,
    "GroupNormalization": _normalized_images,
    "InstanceNormalization": _normalized_images,
    "com.microsoft:SkipLayerNormalization": _normalized(2, 3),
    "com.microsoft:SkipSimplifiedLayerNormalization": _normalized(2, 0),
}
"""Propagation of scales by channel, by operator."""
