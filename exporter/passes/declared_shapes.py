"""Declared shapes: correct those that contradict what the nodes compute.

ONNX Runtime warns of such a declaration and continues; ONNX's checker and converters reject the model. The nodes
decide: the declaration is replaced by the shape that is inferred from them, or that FP32 produced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from demi.tensors import Feeds

logger = logging.getLogger(__name__)

SHOWN_ELEMENTS = 128
"""Constants up to this size are shown to the inference: shapes and axes among them."""

NAMED = 3
"""Number of tensors that a warning names."""


def correct_shapes(model: ir.Model, references: Sequence[Feeds]) -> tuple[str, ...]:
    """Correct, in place, the declared shapes that the nodes of `model` contradict; return one sentence per correction.

    Before: the model went through `prepare`, and `references` are its outputs. After: the declared shapes are those
    that ONNX infers, as far as it can; a public output has the inferred shape where the references have it, else free
    axes. Names, types and what the model computes are unchanged.
    """
    wrong = [value for value in model.graph.outputs if not _fits(value.shape, _answers(value, references))]
    if not wrong and _consistent(model):
        return ()
    corrected: list[str] = []
    for value, inferred in _inferred_shapes(model):
        declared = value.shape
        if value in wrong or not _agree(declared, inferred):
            answers = _answers(value, references) if value.is_graph_output() else []
            value.shape = inferred if inferred is not None and _fits(inferred, answers) else _free(value, answers)
            corrected.append(f"`{value.name}` is declared as {_shown(declared)} and is {_shown(value.shape)}")
    if not _consistent(model):
        _forget_inner_shapes(model)
    more = [f"and {len(corrected) - NAMED} other tensors likewise"] if len(corrected) > NAMED else []
    named = [*corrected[:NAMED], *more]
    return (f"the file's own shapes are wrong, and were corrected: {'; '.join(named)}",) if named else ()


def _forget_inner_shapes(model: ir.Model) -> None:
    """Remove the shapes of inner tensors where that helps: the body of a loop may contradict the loop's outputs."""
    shapes = {value: value.shape for value in node_values(model) if not value.is_graph_output()}
    for value in shapes:
        value.shape = None
    if not _consistent(model):  # for a reason of its own
        for value, shape in shapes.items():
            value.shape = shape


def _answers(value: ir.Value, references: Sequence[Feeds]) -> list[tuple[int, ...]]:
    return [outputs[value.name].shape for outputs in references if value.name in outputs]


def _fits(shape: ir.Shape | None, answers: Sequence[tuple[int, ...]]) -> bool:
    """Return whether tensors of these shapes fit the declared one."""
    return shape is None or all(_agree(shape, ir.Shape(answer)) for answer in answers)


def _agree(one: ir.Shape | None, other: ir.Shape | None) -> bool:
    """Return whether two shapes may be those of one tensor: the same rank, and no two different sizes."""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        first == second
        for first, second in zip(one, other, strict=True)
        if isinstance(first, int) and isinstance(second, int)
    )


def _free(value: ir.Value, answers: Sequence[tuple[int, ...]]) -> ir.Shape | None:
    """Return a shape of free axes with the rank of the references; None without references."""
    return ir.Shape([f"{value.name}_axis{axis}" for axis in range(len(answers[0]))]) if answers else None


def _consistent(model: ir.Model) -> bool:
    """Return whether ONNX's inference, which trusts declared shapes, contradicts none of them."""
    try:
        onnx.shape_inference.infer_shapes(
            without_large_weights(model), check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:
        logger.info("declared shapes do not agree with the nodes: %s", error)
        return False
    return True


def _inferred_shapes(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Shape | None]]:
    """Return every tensor that a node makes, with the shape inferred from the nodes alone; None where it cannot be."""
    bare = model.clone()
    for value in node_values(bare):
        value.shape = None
    inferred = onnx.shape_inference.infer_shapes(without_large_weights(bare), strict_mode=False, data_prop=True)
    shapes = {value.name: value.shape for value in node_values(ir.from_proto(inferred))}
    for value in node_values(model):
        yield value, shapes.get(value.name)


def node_values(model: ir.Model) -> list[ir.Value]:
    """Return every named tensor that a node makes."""
    return [value for node in model.graph.all_nodes() for value in node.outputs if value.name]


def without_large_weights(model: ir.Model) -> onnx.ModelProto:
    """Return the model as a message without its large weights, which would not fit: they become inputs."""
    shown = model.clone()
    for name, value in list(shown.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > SHOWN_ELEMENTS:
            del shown.graph.initializers[name]
            value.const_value = None
            if not value.is_graph_input():
                shown.graph.inputs.append(value)
    return ir.to_proto(shown)


def _shown(shape: ir.Shape | None) -> str:
    return "of an unknown shape" if shape is None else f"[{', '.join(map(str, shape))}]"
