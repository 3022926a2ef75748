"""Channel folding: multiply constants of single channels around a convolution into its weights and bias.

    BatchNormalization(Conv(x, W, b)) = Conv(x, W', b')    W'[c] = a[c] W[c]    b'[c] = a[c] b[c] + s[c]

Runtimes do this themselves. Done before planning, the folded weights are rounded once instead of twice, and neither the
results between nor their scale are rounded at all. What would lose weights in FP16 is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.exporter.passes.channel_affine import Affine, affine_of, numbers_of
from demi.float16 import FP16, half_loss, round_through
from demi.tensors import Array

WEIGHT, BIAS = 1, 2

ORDINARY = FP16.epsilon / 2
"""Relative L2 of a channel's weights rounded to FP16, above which more is lost than the last digits of normal numbers."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution whose FP32 weights are constant and its own."""

    node: ir.Node
    weight: ir.Value
    numbers: Array
    """float32[outputs, inputs / groups, ...], or float32[inputs, outputs / groups, ...] of a ConvTranspose."""
    groups: int

    @property
    def channels(self) -> tuple[int, int]:
        """The channels of the input, and those of the output."""
        first, second = self.numbers.shape[0], self.numbers.shape[1] * self.groups
        return (second, first) if self.node.op_type == "Conv" else (first, second)

    def spread(self, by_channel: Array, *, of_input: bool) -> Array:
        """Return numbers of channels in a shape that multiplies the weights."""
        if (self.node.op_type == "Conv") == of_input:  # the channels of each group are in the second axis
            rows = self.numbers.shape[0] // self.groups
            spread = np.repeat(by_channel.reshape(self.groups, -1), rows, axis=0)
        else:
            spread = by_channel[:, None]
        return spread.reshape(*spread.shape, *(1,) * (self.numbers.ndim - 2))

    def by_output(self, weight: Array) -> Array:
        """Return weights as a row for each channel of the output."""
        if self.node.op_type == "Conv":
            return weight.reshape(weight.shape[0], -1)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return np.moveaxis(grouped, 2, 1).reshape(self.channels[1], -1)

    @property
    def bias(self) -> Array:
        """float64, the bias of every channel of the output, or one zero."""
        numbers = numbers_of(self.node.inputs[BIAS]) if len(self.node.inputs) > BIAS else None
        return np.zeros(1) if numbers is None else numbers


def fold_channels(model: ir.Model) -> ir.Model | None:
    """Return `model`, changed in place, with constants of single channels folded into convolutions; None if there are none.

    Folded are products, sums and batch normalizations by constants, one for all channels or one for each, where nothing
    else reads what is between. Public names, and weights that other nodes read too, stay as they are.
    """
    nodes = [node for graph in (model.graph, *model.graph.subgraphs()) for node in tuple(graph)]
    count = sum(_fold_all(node, fold) for node in nodes for fold in (_fold_after, _fold_before))
    if not count:
        return None
    common.RemoveUnusedNodesPass()(model)
    return model


def _fold_all(node: ir.Node, fold: Callable[[Layer], bool]) -> int:
    """Fold into a node until nothing is left; return the number of folded nodes."""
    count = 0
    while (layer := layer_of(node)) is not None and fold(layer):
        count += 1
    return count


def layer_of(node: ir.Node) -> Layer | None:
    """Return a node as a layer; None for other operators, and for weights that are not constant or not its own."""
    if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in ("", "ai.onnx") or node.graph is None:
        return None
    weight = node.inputs[WEIGHT] if len(node.inputs) > WEIGHT else None
    bias = node.inputs[BIAS] if len(node.inputs) > BIAS else None
    if weight is None or weight.const_value is None or weight.const_value.dtype != ir.DataType.FLOAT:
        return None
    if len(weight.uses()) != 1 or weight.is_graph_output() or weight.is_graph_input() or weight.graph is not node.graph:
        return None
    if bias is not None and numbers_of(bias) is None:
        return None
    return Layer(node, weight, weight.const_value.numpy(), node.attributes.get_int("group", 1))


def _fold_after(layer: Layer) -> bool:
    """Fold the only reader of a layer's output into it; return False if nothing was changed."""
    output = layer.node.outputs[0]
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.graph is not layer.node.graph:
        return False
    affine = affine_of(uses[0].node, uses[0].idx, layer.channels[1], layer.numbers.ndim)
    if affine is None:
        return False
    scaled = layer.numbers * layer.spread(affine.scale, of_input=False)
    if not _replaced(layer, scaled, layer.bias * affine.scale + affine.shift):
        return False
    made = affine.node.outputs[0]
    ir.convenience.replace_all_uses_with(made, output, replace_graph_outputs=True)
    output.name, output.shape, output.type = made.name, made.shape, made.type
    _remove(affine)
    return True


def _fold_before(layer: Layer) -> bool:
    """Fold the maker of a layer's input into it, if nothing else reads that; return False if nothing was changed."""
    value = layer.node.inputs[0]
    maker = value.producer() if value is not None else None
    if value is None or maker is None or maker.graph is not layer.node.graph:
        return False
    if len(value.uses()) != 1 or value.is_graph_output():
        return False
    affine = _affine_before(layer, maker)
    if affine is None or (affine.shift.any() and not _sees_all(layer.node)):
        return False
    scaled = layer.numbers * layer.spread(affine.scale, of_input=True)
    added = (layer.numbers * layer.spread(affine.shift, of_input=True)).sum(axis=tuple(range(1, layer.numbers.ndim)))
    if not _replaced(layer, scaled, layer.bias + added if affine.shift.any() else layer.bias):
        return False
    layer.node.replace_input_with(0, affine.node.inputs[affine.position])
    _remove(affine)
    return True


def _affine_before(layer: Layer, maker: ir.Node) -> Affine | None:
    """Return the maker of a layer's input as an Affine of a tensor that has the layer's rank and channels itself."""
    channels, rank = layer.channels[0], layer.numbers.ndim
    for position, value in enumerate(maker.inputs[:2]):
        shape = value.shape if value is not None and value.const_value is None else None
        if shape is not None and len(shape) == rank and shape[1] == channels:
            return affine_of(maker, position, channels, rank)
    return None


def _sees_all(node: ir.Node) -> bool:
    """Return True if every result is a sum over all weights: a Conv that pads nothing."""
    pads = node.attributes.get_ints("pads", ()) or ()
    return (
        node.op_type == "Conv"
        and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and not any(pads)
    )


def _replaced(layer: Layer, weight: Array, bias: Array) -> bool:
    """Give a layer other weights and another bias; return False, and change nothing, where FP16 would lose numbers."""
    weight, bias = weight.astype(np.float32), bias.astype(np.float32)
    if _loses(layer, weight) or not np.isfinite(bias).all() or half_loss(bias, FP16).overflowed:
        return False
    layer.weight.const_value = ir.tensor(weight, name=layer.weight.name)
    if bias.any() or len(layer.node.inputs) > BIAS:
        _set_bias(layer.node, np.broadcast_to(bias, (layer.channels[1],)))
    return True


def _loses(layer: Layer, weight: Array) -> bool:
    """Return True if other weights of a layer lose more in FP16 than its own, in a channel of the output."""
    if not np.isfinite(weight).all():
        return True
    was, now = (_rounding(layer.by_output(each)) for each in (layer.numbers, weight))
    return bool((now > np.maximum(was, ORDINARY)).any())


def _rounding(rows: Array) -> Array:
    """Return the relative L2 error of each row in FP16; infinite where a number overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        error, size = np.linalg.norm(round_through(rows, FP16) - rows, axis=1), np.linalg.norm(rows, axis=1)
        relative: Array = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
        return relative


def _set_bias(node: ir.Node, numbers: Array) -> None:
    assert isinstance(node.graph, ir.Graph)
    name = base = f"{node.name}_bias"
    count = 0
    while name in node.graph.initializers:
        name, count = f"{base}_{count}", count + 1
    tensor = ir.tensor(np.ascontiguousarray(numbers), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor
    )
    node.graph.register_initializer(value)
    if len(node.inputs) <= BIAS:
        node.resize_inputs(BIAS + 1)
    node.replace_input_with(BIAS, value)


def _remove(affine: Affine) -> None:
    assert affine.node.graph is not None
    affine.node.graph.remove(affine.node, safe=True)
