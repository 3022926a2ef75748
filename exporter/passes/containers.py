"""Containers: replace sequences, optionals and maps among a model's inputs and outputs by the tensors in them.

A bundle takes and returns tensors only, as the protocol does, and half is measured on tensors. Most containers can be
written as tensors: the maps of sklearn's ZipMap are rows of a table, a sequence of known length is that many tensors,
and any other sequence is its elements concatenated, with a second tensor of their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.errors import SourceError
from demi.exporter.passes.container_tensors import ContainerTensors, without_maps
from demi.exporter.passes.sparse_weights import with_dense_weights


@dataclass(frozen=True, slots=True)
class Exposed:
    """A model with tensors as inputs and outputs, and one sentence for each container that was replaced."""

    model: ir.Model
    notes: tuple[str, ...] = ()


def read_proto(proto: onnx.ModelProto) -> Exposed:
    """Return the model in a message; maps, which onnx-ir cannot represent, become the tables they were made from.

    Sparse weights become dense. Raises ConversionError for one that cannot be written out.
    """
    dense = with_dense_weights(proto)
    plain = without_maps(dense)
    return Exposed(ir.from_proto(dense)) if plain is dense else _exposed(ir.from_proto(plain), None, _is_table)


def expose_tensors(model: ir.Model, given: Collection[str] | None = None) -> Exposed:
    """Return a copy with the tensors of its containers as inputs and outputs; the model itself where it has none there.

    An optional input becomes a tensor that is always present, or is removed where it is not among those `given`.
    Containers that cannot be written as tensors (a sequence as an input, say) stay. `model` is not changed.
    """
    return _exposed(model, given, _is_container)


def require_tensors(model: ir.Model, where: str | None = None) -> None:
    """Raise SourceError for a container that is left among the inputs or outputs."""
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            if _is_container(value):
                what = "a sequence" if isinstance(value.type, ir.SequenceType) else "an optional"
                raise SourceError(
                    f"{kind} `{value.name}` is {what}, but a bundle takes and returns tensors only",
                    where=where,
                    hint="change the model to take and return the tensors in it",
                )


def _exposed(model: ir.Model, given: Collection[str] | None, wanted: Callable[[ir.Value], bool]) -> Exposed:
    if not any(map(wanted, (*model.graph.inputs, *model.graph.outputs))):
        return Exposed(model)
    copy = model.clone()
    replaced = ContainerTensors(copy)
    for value in list(copy.graph.inputs):
        if wanted(value) and isinstance(value.type, ir.OptionalType):
            replaced.replace_input(value, present=given is None or value.name in given)
    outputs = list(copy.graph.outputs)
    copy.graph.outputs.clear()
    for value in outputs:
        copy.graph.outputs.extend(replaced.replace_output(value) if wanted(value) else [value])
    common.RemoveUnusedNodesPass()(copy)
    return Exposed(copy, tuple(replaced.notes))


def _is_container(value: ir.Value) -> bool:
    return isinstance(value.type, ir.SequenceType | ir.OptionalType) or _is_table(value)


def _is_table(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "ZipMap"
