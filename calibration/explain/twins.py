"""Twins: the FP32 reference and the half model in one graph, with corresponding tensors.

Three copies share the inputs:

- the **reference**, in FP32;
- the **half** model, with every rounding explicit (`demi.calibration.emulation.widen.widen`);
- the half model **alone**, where every node reads the reference's tensors, which shows the error of that node alone.

In addition there is a switch. With `upto` = k, the reference reads the half model's tensors where the first k nodes of
the half model compute them, and continues in FP32: the outputs then show the error of those k nodes. With 0, the
reference is unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from demi.calibration.emulation.widen import HALF_TYPES, ROUNDED, as_read, widen
from demi.calibration.graph_pieces import place_behind
from demi.calibration.rescaling.certificate import Powers, as_array

UPTO = "demi_upto"
HALF, ALONE = "demi_half/", "demi_alone/"
"""Prefixes of the names in the two half copies; the reference keeps its own names."""

STANDS_FOR = "demi/stands_for"
FLOATS = frozenset({ir.DataType.FLOAT, *HALF_TYPES})
SELECTABLE = frozenset({ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64})
"""Types that ONNX Runtime's Where takes; tensors of other types are computed in the reference from its inputs."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Names in `Twins.model` of one tensor of the half model and of its counterparts."""

    tensor: str
    reference: str
    half: str
    alone: str
    is_rounded: bool
    """True if the model rounds it where it is computed, so that a value read before that must be rounded as well."""


@dataclass(frozen=True, slots=True)
class Twins:
    """The graph of both models, and the pairs of corresponding tensors, by the half model's names."""

    model: ir.Model
    """Inputs: the reference's, and the integer `UPTO`. Outputs: the reference's, in order."""
    outputs: tuple[str, ...]
    """Original names of the outputs; some have other names in `model`."""
    pairs: Mapping[str, Pair]


def twins_of(
    reference: ir.Model,
    mixed: ir.Model,
    exponents: Mapping[str, Powers] | None = None,
    fused: Mapping[str, str] | None = None,
) -> Twins:
    """Join both models in one graph; neither is changed, and weights are shared.

    `exponents` says, by the reference's names, which tensors of the half model are 2^e times the reference's: they are
    compared in the half model's scale, and handed over in that of the model that reads them.

    `fused` names the kernel of each node that shares one with others; inside such a kernel nothing is rounded.

    Tensors correspond when they have the same name, or when only a cast is between them: lowering keeps names. A tensor
    that the reference does not have (inside a fusion, say) has no counterpart. Raises ConversionError when the half
    model cannot be emulated.
    """
    whole, graph = reference.clone(), mixed.clone()
    names, outputs = pair_names(whole, graph), tuple(value.name or "" for value in whole.graph.outputs)
    for value in _values(graph):
        value.meta[STANDS_FOR] = value.name
    own = {value.name or "": value for value in (*whole.graph.inputs, *_made(whole))}
    nodes = list(whole.graph.all_nodes())
    scales = {name: exponent for name, exponent in (exponents or {}).items() if exponent and name in own}
    own |= {name: _scaled_copy(own[name], exponent) for name, exponent in scales.items()}
    half = _graft(whole, widen(graph, fused=fused), HALF, before=whole.graph[0] if len(whole.graph) else None)
    alone = _graft(whole, widen(graph, fused=fused), ALONE, before=None)
    for tensor in names.keys() & alone.keys():
        _read_exactly(alone[tensor], own[names[tensor]])
    _SwitchOver(whole, nodes, graph, names, half, scales).connect()
    pairs = {
        tensor: Pair(
            tensor,
            own[name].name or "",
            half[tensor].name or "",
            alone[tensor].name or "",
            ROUNDED in half[tensor].meta,
        )
        for tensor, name in names.items()
        if tensor in half and tensor in alone
    }
    return Twins(whole, outputs, pairs)


def pair_names(reference: ir.Model, mixed: ir.Model) -> dict[str, str]:
    """Return the reference's name of each tensor of the half model that it has, inputs included."""
    known = {value.name for value in (*reference.graph.inputs, *_made(reference))}
    names = {value.name or "": value.name or "" for value in mixed.graph.inputs if value.name in known}
    casts = [node for node in mixed.graph if _is_float_cast(node)]
    for value in _made(mixed):
        source = _cast_source(value)
        if value.name in known:
            names[value.name or ""] = value.name or ""
        elif source is not None and source.name in names:
            names[value.name or ""] = names[source.name]
    for cast in casts:  # a public name stays with the cast behind the tensor's node
        source, name = _cast_source(cast.outputs[0]), cast.outputs[0].name or ""
        if source is not None and name in names:
            names.setdefault(source.name or "", names[name])
    return names


def _is_float_cast(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.outputs[0].dtype in FLOATS


def _cast_source(value: ir.Value) -> ir.Value | None:
    """Return the tensor that a cast between float types reads; None for a value that is not such a cast's."""
    node = value.producer()
    if node is None or not _is_float_cast(node) or (read := node.inputs[0]) is None:
        return None
    return read if read.dtype in FLOATS else None


def _graft(whole: ir.Model, model: ir.Model, prefix: str, before: ir.Node | None) -> dict[str, ir.Value]:
    """Move a widened model into the graph, on the same inputs, and return its tensors by their original names."""
    for value in _values(model):
        value.name = f"{prefix}{value.name}"
    for node in model.graph.all_nodes():
        node.name = f"{prefix}{node.name}"
    found = {str(value.meta[STANDS_FOR]): value for value in _values(model) if STANDS_FOR in value.meta}
    inputs = {value.name: value for value in whole.graph.inputs}
    for value in list(model.graph.initializers.values()):
        del model.graph.initializers[value.name or ""]
        if not value.is_graph_input():
            whole.graph.register_initializer(value)
    casts = []
    for value in model.graph.inputs:
        shared = inputs[str(value.meta[STANDS_FOR])]
        if value.dtype is not shared.dtype and value.dtype is not None:
            casts.append(_node("Cast", [shared], f"{value.name}_cast", value.dtype, to=int(value.dtype)))
            shared = casts[-1].outputs[0]
        value.replace_all_uses_with(shared, replace_graph_outputs=True)
    nodes = list(model.graph)
    model.graph.outputs.clear()
    model.graph.remove(nodes)
    if before is None:
        whole.graph.extend([*casts, *nodes])
    else:
        whole.graph.insert_before(before, [*casts, *nodes])
    for domain, version in model.opset_imports.items():
        whole.opset_imports.setdefault(domain, version)
    return found


def _read_exactly(value: ir.Value, exact: ir.Value) -> None:
    """Let the readers of a tensor in the copy `alone` read the reference's tensor instead."""
    read = as_read(value)
    if read.dtype is exact.dtype and isinstance(read.type, ir.TensorType) and read is not exact:
        read.replace_all_uses_with(exact, replace_graph_outputs=True)


class _SwitchOver:
    """Builds the switch that lets the reference read the half model's tensors up to a node. Owns the new nodes."""

    def __init__(
        self,
        whole: ir.Model,
        nodes: list[ir.Node],
        mixed: ir.Model,
        names: Mapping[str, str],
        half: Mapping[str, ir.Value],
        scales: Mapping[str, Powers],
    ) -> None:
        self._scales = scales
        self._whole, self._nodes, self._mixed, self._names, self._half = whole, nodes, mixed, names, half
        self._order = {value.name: k for k, node in enumerate(mixed.graph, start=1) for value in node.outputs}
        self._made = {value.name: value for value in _made(mixed)}
        self._twin = {node.name: node for node in mixed.graph.all_nodes()}
        self._first: dict[str, str] = {}
        for tensor, name in names.items():
            if tensor in self._made and tensor in half:
                self._first.setdefault(name, tensor)
        self._chosen: dict[str, ir.Value] = {}
        dims = [
            dim for value in self._whole.graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)
        ]
        self._free = {dim.value for dim in dims} - {None}
        self._upto = ir.Value(name=UPTO, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))

    def connect(self) -> None:
        """Connect every reader in the reference, and every output, to the tensor that its twin in the half model reads."""
        named = {value.name: value for value in self._mixed.graph.outputs}
        outputs = [(position, value, named.get(value.name)) for position, value in enumerate(self._whole.graph.outputs)]
        uses = [(node, i, value) for node in self._nodes for i, value in enumerate(node.inputs) if value is not None]
        for node, position, value in uses:
            twin = self._twin.get(node.name)
            seen = twin.inputs[position] if twin is not None and position < len(twin.inputs) else None
            node.replace_input_with(position, self._choose(value, seen))
        for position, value, seen in outputs:
            self._whole.graph.outputs[position] = self._choose(value, seen)
        self._whole.graph.inputs.append(self._upto)

    def _choose(self, value: ir.Value, seen: ir.Value | None) -> ir.Value:
        """Return the switch between the reference's `value` and the half model's tensor."""
        tensor = seen.name if seen is not None and self._names.get(seen.name or "") == value.name else None
        tensor = tensor if tensor in self._half and tensor in self._made else self._first.get(value.name or "")
        if tensor is None or value.dtype not in SELECTABLE or not isinstance(value.type, ir.TensorType):
            return value
        if tensor not in self._chosen:
            source = _cast_source(self._made[tensor])
            chained = (
                source is not None and source.name in self._order and self._names.get(source.name or "") == value.name
            )
            before = self._choose(value, source) if chained else value
            self._chosen[tensor] = self._where(tensor, before, value) if self._fits(tensor, value) else before
        return self._chosen[tensor]

    def _fits(self, tensor: str, value: ir.Value) -> bool:
        return as_read(self._half[tensor]).dtype is value.dtype

    def _where(self, tensor: str, before: ir.Value, value: ir.Value) -> ir.Value:
        """Add `Where(k >= the node's position, the half model's tensor, before)` right behind its inputs.

        Where a shape depends on the numbers, as behind a NonMaxSuppression, an If is used, whose branches may differ.
        """
        k = self._order[tensor]
        place = ir.Value(name=f"{UPTO}_place_{k}_{tensor}", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        place.const_value = ir.tensor(np.array(k - 1, np.int64), name=place.name)
        self._whole.graph.register_initializer(place)
        reached = _node("Less", [place, self._upto], f"{UPTO}_reached_{k}_{tensor}", ir.DataType.BOOL)
        read, unscaled = as_read(self._half[tensor]), []
        if exponent := self._scales.get(self._names[tensor]):
            unscaled = _times_power(read, -as_array(exponent), f"{UPTO}_unscaled_{k}_{tensor}")
            read = unscaled[-1].outputs[0]
        assert value.dtype is not None
        name = f"{UPTO}_{k}_{tensor}"
        if self._may_differ_in_shape(value):
            where = _node(
                "If",
                [reached.outputs[0]],
                name,
                value.dtype,
                then_branch=_passing(read, f"{name}_then"),
                else_branch=_passing(before, f"{name}_else"),
            )
        else:
            where = _node("Where", [reached.outputs[0], read, before], name, value.dtype)
            where.outputs[0].shape = value.shape
        producer = before.producer()
        if producer is not None:
            self._whole.graph.insert_after(producer, [reached, *unscaled, where])
        else:
            self._whole.graph.insert_before(self._nodes[0], [reached, *unscaled, where])
        return where.outputs[0]

    def _may_differ_in_shape(self, value: ir.Value) -> bool:
        """Return whether a shape has a dimension that is neither fixed nor that of an input."""
        return value.shape is None or any(
            isinstance(dim, ir.SymbolicDim) and dim.value not in self._free for dim in value.shape
        )


def _scaled_copy(value: ir.Value, exponent: Powers) -> ir.Value:
    """2^exponent times a tensor, beside it."""
    pieces = _times_power(value, as_array(exponent), f"demi_scaled_{value.name}")
    place_behind(value, pieces)
    return pieces[-1].outputs[0]


def _times_power(value: ir.Value, exponents: NDArray[np.int64], name: str) -> list[ir.Node]:
    """The nodes that multiply a float32 tensor by powers of two, which broadcast with it; the last one makes the product."""
    power = ir.tensor(np.asarray(np.ldexp(np.float32(1.0), exponents), np.float32))
    factor = ir.node("Constant", [], attributes={"value": power}, name=f"{name}_factor")
    factor.outputs[0].name, factor.outputs[0].type = f"{name}_factor", ir.TensorType(ir.DataType.FLOAT)
    product = _node("Mul", [value, factor.outputs[0]], name, ir.DataType.FLOAT)
    product.outputs[0].shape = value.shape
    return [factor, product]


def _passing(value: ir.Value, name: str) -> ir.Graph:
    """Return a branch that passes a tensor of the outer graph through."""
    assert value.dtype is not None
    passed = _node("Identity", [value], name, value.dtype)
    return ir.Graph([], passed.outputs, nodes=[passed], name=name)


def _node(op_type: str, inputs: list[ir.Value], name: str, dtype: ir.DataType, **attributes: int | ir.Graph) -> ir.Node:
    node = ir.node(op_type, inputs, attributes=attributes, name=name)
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(dtype)
    return node


def _made(model: ir.Model) -> list[ir.Value]:
    """Return the outputs of the main graph's nodes, in order."""
    return [value for node in model.graph for value in node.outputs if value.name]


def _values(model: ir.Model) -> Iterable[ir.Value]:
    graphs = (model.graph, *model.graph.subgraphs())
    held = {value: None for graph in graphs for value in (*graph.inputs, *graph.initializers.values())}
    return [*held, *(value for node in model.graph.all_nodes() for value in node.outputs if value.name)]
