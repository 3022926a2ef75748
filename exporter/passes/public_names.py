"""Public names: rename inputs, outputs and free axes as requested, without clashing with inner values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from demi.errors import SourceError


def rename_inputs(model: ir.Model, names: Sequence[str]) -> None:
    """Rename the graph's inputs in order; an inner value that has a wanted name is renamed."""
    if [value.name for value in model.graph.inputs] == list(names):
        return
    _step_aside(model, set(names))
    for value, name in zip(model.graph.inputs, names, strict=True):
        value.name = name


def rename_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Rename the graph's outputs in order.

    An inner value that has a wanted name is renamed first, since PyTorch's exporter writes an invalid model in that
    case. An output that is also an input or another output gets an Identity to carry its name. Raises SourceError when
    the names are too few, too many, not unique, or an input's.
    """
    outputs = model.graph.outputs
    if len(names) != len(outputs) or len(set(names)) != len(names):
        raise SourceError(
            f"{len(names)} output names ({', '.join(names)}) for {len(outputs)} outputs",
            hint="give --output-names one different name for each output",
        )
    taken = {value.name for value in model.graph.inputs} & set(names)
    if taken:
        raise SourceError(
            f"`{taken.pop()}` is an input's name and cannot be an output's as well", hint="choose other --output-names"
        )
    _step_aside(model, set(names))
    named: set[ir.Value] = set()
    for position, name in enumerate(names):
        value = outputs[position]
        if value in named or value.is_graph_input() or value.is_initializer():
            value = outputs[position] = _carry(model, value)
        value.name = name
        named.add(value)


def rename_axes(model: ir.Model, axes: Mapping[str, Sequence[int | str]]) -> None:
    """Name the free axes: as the user did, else `batch` for the first free first axis, else after input and position.

    Derived dimensions elsewhere in the graph (`s0*s1`) follow.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        given = axes.get(value.name or "", ())
        for position, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None and dim.value not in names:
                chosen = given[position] if position < len(given) else None
                # Two different first axes may differ in size: only one of them is the batch.
                batch = position == 0 and "batch" not in names.values()
                fallback = "batch" if batch else f"{value.name}_dim{position}"
                names[dim.value] = chosen if isinstance(chosen, str) else fallback
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _values(model):
        if any(isinstance(dim, ir.SymbolicDim) and dim.value is not None for dim in value.shape or ()):
            value.shape = ir.Shape(
                pattern.sub(lambda match: names[match[0]], dim.value)
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in value.shape or ()
            )


def _step_aside(model: ir.Model, wanted: set[str]) -> None:
    taken = {value.name for value in _values(model)} | wanted
    for value in _values(model):
        if value.name in wanted:
            fresh, count = f"{value.name}_inner", 1
            while fresh in taken:
                fresh, count = f"{value.name}_inner_{count}", count + 1
            taken.add(fresh)
            value.name = fresh


def _carry(model: ir.Model, value: ir.Value) -> ir.Value:
    identity = ir.node("Identity", [value])
    identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
    model.graph.append(identity)
    return identity.outputs[0]


def _values(model: ir.Model) -> list[ir.Value]:
    graphs = (model.graph, *model.graph.subgraphs())
    held = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    return held + [value for node in model.graph.all_nodes() for value in node.outputs]
