"""Prepare: make any valid graph easy to rewrite, without changing what it computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeGuard

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.axes import is_name, own_name
from demi.errors import ConversionError
from demi.exporter.passes.input_defaults import IR_WITH_PLAIN_INITIALIZERS, drop_defaults

CONTAINER_OPS = frozenset(
    {"SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceMap", "SplitToSequence"}
    | {"Optional", "OptionalGetElement"}
)
"""Operators that produce sequences and optionals."""


def prepare(model: ir.Model) -> ir.Model:
    """Return a copy of `model`, ready for planning and lowering; tensors are shared, not copied. See `prepare_pass`."""
    return prepare_pass(model).model


def prepare_pass(model: ir.Model) -> ir.passes.PassResult:
    """Return the prepared copy, and whether it differs from `model`.

    Before: any valid model. After: there are no local functions and no Constant nodes (except those that are graph
    outputs), every node and value has a name that is unique in the whole model, nodes are sorted, and types are
    inferred wherever ONNX can infer them. Public names, order, types and shapes of inputs and outputs are unchanged,
    but for free axes without a name: those of inputs get a unique one each, and those of outputs the one that ONNX
    proves equal. Old files in which every initializer had to be an input become constants, and the IR version rises.
    Raises ConversionError when a step fails.
    """
    steps = (
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.TopologicalSortPass(),
        common.NameFixPass(),
        _UniqueNames(),
        _ContainerTypes(),
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True),
    )
    doing = "copying it"
    try:
        prepared = model.clone()
        modified = name_free_axes(prepared)
        # Old files list every weight among their inputs, without meaning that callers may pass it.
        modified = (prepared.ir_version < IR_WITH_PLAIN_INITIALIZERS and drop_defaults(prepared)) or modified
        given = _PublicTypes(prepared)
        for step in steps:
            doing = type(step).__name__
            result = step(prepared)
            prepared, modified = result.model, modified or result.modified
    except Exception as error:
        raise ConversionError(
            f"the graph cannot be prepared ({doing}): {error}", hint="check the model with onnx.checker.check_model"
        ) from error
    given.restore(prepared)
    if prepared.ir_version < IR_WITH_PLAIN_INITIALIZERS:
        prepared.ir_version, modified = IR_WITH_PLAIN_INITIALIZERS, True
    return ir.passes.PassResult(prepared, modified)


def name_free_axes(model: ir.Model) -> bool:
    """Give every unnamed free axis of the inputs a unique name, and remove placeholders; return whether anything
    changed.

    Exporters call all such axes `?`, for example, and equal names would promise equal sizes.
    """
    modified = False
    for value in model.graph.inputs:
        for axis, _ in _nameless(value):
            assert value.shape is not None
            value.shape[axis] = own_name(value.name or "", axis)
            modified = True
    for value in _all_values(model):
        for axis, dim in _nameless(value):
            assert value.shape is not None
            modified = modified or dim is not None
            value.shape[axis] = None
    return modified


def _nameless(value: ir.Value) -> list[tuple[int, int | str | None]]:
    """Return the free axes of a value without a name, by position, with their placeholder."""
    dims = [dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape or ()]
    return [(axis, dim) for axis, dim in enumerate(dims) if not (is_name(dim) or (isinstance(dim, int) and dim >= 0))]


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from (*graph.inputs, *graph.outputs)
        yield from (value for node in graph for value in node.outputs)
    for function in model.functions.values():
        yield from (value for node in function for value in (*node.inputs, *node.outputs) if value is not None)


class _UniqueNames(ir.passes.InPlacePass):
    """Make names unique in the whole model: NameFixPass lets two branches of an If share theirs.

    Before: every node and value has a name. After: the second of two equal names is another; public names and
    names in the main graph are kept.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = _make_unique(model.graph.all_nodes(), set())
        graphs = (model.graph, *model.graph.subgraphs())
        held = (value for graph in graphs for value in (*graph.inputs, *graph.initializers.values()))
        made = (value for node in model.graph.all_nodes() for value in node.outputs if value.name)
        values = dict.fromkeys(itertools.chain(model.graph.inputs, model.graph.outputs, held, made))
        modified = _make_unique(values, set()) or modified
        return ir.passes.PassResult(model, modified)


def _make_unique(things: Iterable[ir.Node | ir.Value], taken: set[str]) -> bool:
    modified = False
    for thing in things:
        name = thing.name or ""
        if name in taken:
            thing.name = next(fresh for count in itertools.count(1) if (fresh := f"{name}_{count}") not in taken)
            modified = True
        taken.add(thing.name or "")
    return modified


class _ContainerTypes(ir.passes.InPlacePass):
    """Add the types of sequences and optionals, which onnx-ir's shape inference would replace by tensor types.

    Before: names are unique. After: every sequence and optional that ONNX can infer has its type.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not any(node.op_type in CONTAINER_OPS for node in model.graph.all_nodes()):
            return ir.passes.PassResult(model, False)
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
        types = {value.name: value.type for node in inferred.graph.all_nodes() for value in node.outputs}
        for node in model.graph.all_nodes():
            for value in node.outputs:
                kind = types.get(value.name)
                if value.type is None and isinstance(kind, ir.SequenceType | ir.OptionalType):
                    value.type = kind
            if node.op_type == "Loop":
                _carry_types(node)
        return ir.passes.PassResult(model, True)


def _carry_types(loop: ir.Node) -> None:
    """Give the inputs of a Loop's body the types of the sequences and optionals that are carried into it."""
    body = loop.attributes["body"].as_graph()
    for given, inner in zip(loop.inputs[2:], body.inputs[2:], strict=False):
        if given is not None and inner.type is None and isinstance(given.type, ir.SequenceType | ir.OptionalType):
            inner.type = given.type


class _PublicTypes:
    """The declared types and shapes of the public inputs and outputs, which inference must not refine."""

    def __init__(self, model: ir.Model) -> None:
        self._given = [(value.type, _copied(value.shape)) for value in (*model.graph.inputs, *model.graph.outputs)]
        self._axes = {dim.value for value in model.graph.inputs for dim in value.shape or () if _is_free(dim)}

    def restore(self, model: ir.Model) -> None:
        """Restore them on a copy of the model; an unnamed axis that was proven equal to an input's gets its name."""
        for value, (kind, shape) in zip((*model.graph.inputs, *model.graph.outputs), self._given, strict=True):
            found = value.shape
            value.type, value.shape = kind, shape
            if shape is None or found is None or len(shape) != len(found):
                continue
            for axis, (given, dim) in enumerate(zip(shape, found, strict=True)):
                if _is_free(given) and given.value is None and _is_free(dim) and dim.value in self._axes:
                    shape[axis] = dim.value


def _is_free(dim: int | ir.SymbolicDim) -> TypeGuard[ir.SymbolicDim]:
    return isinstance(dim, ir.SymbolicDim)


def _copied(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else shape.copy()
