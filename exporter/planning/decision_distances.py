"""The distance of a decision from the nearest other result, as a multiple of half's error in its operands.

Every function takes the node, the FP32 numbers of its deciding operands, and the largest change of each in half. It
returns infinity if half cannot change the result, and 0 if the distance is unknown.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from demi.exporter.planning.nms import Suppression, corners
from demi.tensors import Array


def _times(distance: float, move: float) -> float:
    """Return `distance / move`, infinite if nothing moves."""
    return distance / move if move > 0 else math.inf


def between_ranks(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest gap between neighbouring ranks that matter: the first k (1 for argmax) and the next."""
    scores = arrays[0]
    axis = node.attributes.get_int("axis", _DEFAULT_AXIS.get(node.op_type, -1))
    if scores.ndim == 0 or scores.size == 0 or scores.shape[axis] < 2:
        return math.inf
    smallest_wins = node.op_type == "ArgMin" or node.attributes.get_int("largest", 1) == 0
    ordered = np.sort(scores if smallest_wins else -scores, axis=axis)
    gaps = np.diff(ordered, axis=axis)
    places = _scalar(node, 1, 1) if node.op_type == "TopK" else 1
    places = gaps.shape[axis] if math.isnan(places) else min(int(places), gaps.shape[axis])
    return _times(float(np.take(gaps, range(places), axis=axis).min(initial=math.inf)), moves[0])


def from_step(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest distance of a number from an integer, or from zero if it becomes a boolean."""
    numbers = arrays[0]
    steps = np.zeros_like(numbers) if node.outputs[0].dtype is ir.DataType.BOOL else np.rint(numbers)
    return _times(float(np.abs(numbers - steps).min(initial=math.inf)), moves[0])


def from_boundary(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest distance of a number from a boundary between two quantization steps."""
    value = node.inputs[1]
    if value is None or value.const_value is None or value.const_value.size != 1:
        return 0.0
    scale = float(value.const_value.numpy().reshape(()))
    steps = arrays[0] / scale
    return _times(scale * float(np.abs(steps - np.floor(steps) - 0.5).min(initial=math.inf)), moves[0])


def from_zero(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest distance of a number from zero."""
    return _times(float(np.abs(arrays[0]).min(initial=math.inf)), moves[0])


def from_half(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest distance of a number from the middle between two integers."""
    return _times(float(np.abs(arrays[0] - np.floor(arrays[0]) - 0.5).min(initial=math.inf)), moves[0])


def from_threshold(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest distance of a number from the attribute `threshold`."""
    threshold = node.attributes.get_float("threshold", 0.0)
    return _times(float(np.abs(arrays[0] - threshold).min(initial=math.inf)), moves[0])


def from_splits(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest distance of a feature from a value at which a tree splits by it."""
    features = np.atleast_2d(arrays[0])
    splits = _splits(node)
    if splits is None:
        return 0.0
    distances = (np.abs(features[:, [feature]] - values).min(initial=math.inf) for feature, values in splits.items())
    return _times(float(min(distances, default=math.inf)), moves[0])


def _splits(node: ir.Node) -> dict[int, Array] | None:
    """Return the values at which the trees of a node split, by feature; None for an encoding that is not known."""
    of_node, modes = node.attributes.get_ints("nodes_featureids"), node.attributes.get("nodes_modes")
    values = node.attributes.get("nodes_values") or node.attributes.get("nodes_splits")
    if of_node is None or values is None or modes is None:
        return None
    at = np.asarray(values.as_floats() if values.type is ir.AttributeType.FLOATS else values.as_tensor().numpy())
    branches = [True] * len(at)  # `TreeEnsemble` numbers its modes, and has its leaves apart
    if modes.type is ir.AttributeType.STRINGS:
        branches = [mode != "LEAF" for mode in modes.as_strings()]
    found: dict[int, list[float]] = {}
    for feature, value, is_branch in zip(of_node, at, branches, strict=True):
        if is_branch:
            found.setdefault(feature, []).append(float(value))
    return {feature: np.unique(splits) for feature, splits in found.items()}


def between_distinct(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest difference of two distinct numbers."""
    return _times(float(np.diff(np.unique(arrays[0])).min(initial=math.inf)), moves[0])


def between_sides(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest difference of two compared numbers."""
    return _times(float(np.abs(arrays[0] - arrays[1]).min(initial=math.inf)), sum(moves))


def between_selections(node: ir.Node, arrays: list[Array], moves: list[float]) -> float:
    """Return the smallest safety of the selection, over all images and classes."""
    boxes, scores = arrays
    most, overlap, least = _scalar(node, 2, 0), _scalar(node, 3, 0.0), _scalar(node, 4, -math.inf)
    if math.isnan(most) or math.isnan(overlap) or math.isnan(least):
        return 0.0
    by_centre = bool(node.attributes.get_int("center_point_box", 0))
    move = moves[0] * (1.5 if by_centre else 1.0)  # a corner moves with its centre and with half its size
    return min(
        (
            Suppression(batch, one_class, overlap, least, int(most), (move, moves[1])).weakest_link()
            for batch, classes in zip(corners(boxes, by_centre), scores, strict=True)
            for one_class in classes
            if most > 0
        ),
        default=math.inf,
    )


def _scalar(node: ir.Node, position: int, default: float) -> float:
    """Return a constant operand's number; NaN if it is computed, `default` if it is omitted."""
    value = node.inputs[position] if position < len(node.inputs) else None
    if value is None:
        return default
    return float(value.const_value.numpy().item()) if value.const_value is not None else math.nan


_DEFAULT_AXIS = {"ArgMax": 0, "ArgMin": 0}
