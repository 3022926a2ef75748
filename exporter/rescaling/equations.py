"""The exponents of a graph as variables, and its operators' rows as equations between them.

A float32 tensor has one variable. A constant has one for each operand that reads it: where readers want different
exponents, it is copied. Numbers in attributes, epsilons above all, have their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from demi.calibration.graph_pieces import subgraphs_of
from demi.calibration.profile import Range, RangeProfile
from demi.exporter.rescaling.rules import Row, row_of

Operand = tuple[ir.Node, int]
"""A node and the position of one of its inputs."""

Edge = Operand | ir.Value
"""A place for a Mul: an operand of a node, or an output of the model."""

ZERO = 0
"""The variable that is 0: what is pinned equals it."""


@dataclass(slots=True)
class System:
    """Variables by what they stand for, and equations: the sum of coefficient times variable is 0."""

    count: int = 1
    equations: list[dict[int, int]] = field(default_factory=list)
    tensors: dict[ir.Value, int] = field(default_factory=dict)
    constants: dict[Operand, int] = field(default_factory=dict)
    """Constants by the operand that reads them."""
    zeros: dict[Operand, int] = field(default_factory=dict)
    """Constants that hold nothing but zeros, which have any exponent and never change."""
    attributes: dict[tuple[ir.Node, str], int] = field(default_factory=dict)
    edges: dict[Edge, tuple[int, int]] = field(default_factory=dict)
    """Operands and outputs that a Mul may scale on their way: the variable of the product, and that of the factor."""
    edge_equations: dict[Edge, int] = field(default_factory=dict)
    """The place of each edge's equation; where the edge gets no Mul, `ties` say the same."""

    def new(self) -> int:
        """A new variable."""
        self.count += 1
        return self.count - 1

    def read(self, node: ir.Node, position: int) -> int | None:
        """The variable of an operand as the node reads it; None for one that is no float32 tensor, or is left out."""
        operand = node, position
        if (edge := self.edges.get(operand)) is not None:
            return edge[0]
        if (constant := self.constants.get(operand)) is not None:
            return constant
        if (zero := self.zeros.get(operand)) is not None:
            return zero
        if position >= len(node.inputs) or (value := node.inputs[position]) is None:
            return None
        return self.tensors.get(value)

    def ties(self, multiplied: Collection[Edge]) -> Iterator[tuple[int, int]]:
        """Pairs of variables that are equal because only the edges in `multiplied` may get a Mul."""
        for edge, (product, factor) in self.edges.items():
            if edge not in multiplied:
                yield product, self.tensors[value_at(edge)]
                yield factor, ZERO


def is_tensor(value: ir.Value | None) -> bool:
    """Return whether a value is a float32 tensor, which may be scaled."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype is ir.DataType.FLOAT


def is_constant(value: ir.Value) -> bool:
    """Return whether a value is a constant that callers cannot replace."""
    return value.const_value is not None and value.is_initializer() and not value.is_graph_input()


def equations_of(model: ir.Model, profile: RangeProfile) -> System:
    """The system of a prepared model, in which every tensor may get a Mul on its way to a reader."""
    system = System()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.inputs:
            _add_tensor(system, value)
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        for value in node.outputs:
            _add_tensor(system, value)
    for node in nodes:
        for position, read in enumerate(node.inputs):
            if read is None or not is_tensor(read):
                continue
            if is_constant(read):
                _add_constant(system, (node, position), profile.get(read.name))
            elif read in system.tensors:
                _add_edge(system, (node, position), system.tensors[read])
    _pin_border(system, model)
    for node in nodes:
        if (bodies := subgraphs_of(node)) and node.op_type in CONTROL_FLOW:
            CONTROL_FLOW[node.op_type](system, node, bodies)
        elif bodies:
            _pin_all(system, node)
            _pin(system, [value for body in bodies for value in (*body.inputs, *body.outputs)])
        else:
            _add_row(system, node, row_of(node))
    return system


def value_at(edge: Edge) -> ir.Value:
    """The tensor that an edge scales."""
    value = edge if isinstance(edge, ir.Value) else edge[0].inputs[edge[1]]
    assert value is not None
    return value


def _add_edge(system: System, edge: Edge, tensor: int) -> None:
    product, factor = system.edges[edge] = system.new(), system.new()
    system.edge_equations[edge] = len(system.equations)
    system.equations.append({product: 1, tensor: -1, factor: -1})


def _add_tensor(system: System, value: ir.Value) -> None:
    if is_tensor(value) and value not in system.tensors:
        system.tensors[value] = system.new()


def _add_constant(system: System, operand: Operand, found: Range | None) -> None:
    """A variable of the operand's own; for zeros one that nobody bounds or changes."""
    is_zero = found is not None and found.count > 0 and not found.largest
    (system.zeros if is_zero else system.constants)[operand] = system.new()


def _pin_border(system: System, model: ir.Model) -> None:
    """Pin inputs and outputs, whose scale callers see, and a constant that is handed out as it is.

    A node's result may be scaled, and a Mul in front of the output bring it back.
    """
    _pin(system, model.graph.inputs)
    for value in model.graph.outputs:
        if value.producer() is None or value not in system.tensors:
            _pin(system, [value])
        elif value not in system.edges:
            _add_edge(system, value, system.tensors[value])
            system.equations.append({system.edges[value][0]: 1})


def _pin(system: System, values: Iterable[ir.Value]) -> None:
    for value in values:
        if value in system.tensors:
            system.equations.append({system.tensors[value]: 1})


def _pin_all(system: System, node: ir.Node) -> None:
    slots = [system.read(node, position) for position in range(len(node.inputs))]
    system.equations += [{variable: 1} for variable in slots if variable is not None]
    _pin(system, node.outputs)


def _add_row(system: System, node: ir.Node, row: Row | None) -> None:
    """The row's equations in the node's variables; an operand that no equation names is pinned."""
    if row is None:
        _pin_all(system, node)
        return
    named: set[str] = set(row.free)
    own: dict[str, int] = {}
    for terms in row.equations:
        if any(_is_absent(node, slot) for slot in terms):
            continue
        equation: dict[int, int] = {}
        for slot, coefficient in terms.items():
            variable = _variable(system, node, slot, own)
            if variable is not None:
                equation[variable] = equation.get(variable, 0) + coefficient
        system.equations.append(equation)
        named |= terms.keys()
    for position in range(len(node.inputs)):
        variable = system.read(node, position)
        if f"i{position}" not in named and variable is not None:
            system.equations.append({variable: 1})
    _pin(system, [value for position, value in enumerate(node.outputs) if f"o{position}" not in named])


def _is_absent(node: ir.Node, slot: str) -> bool:
    """Return whether an operand is left out, so that no equation about it holds."""
    if slot[0] == "i":
        position = int(slot[1:])
        return position >= len(node.inputs) or node.inputs[position] is None
    return slot[0] == "o" and int(slot[1:]) >= len(node.outputs)


def _variable(system: System, node: ir.Node, slot: str, own: dict[str, int]) -> int | None:
    """The variable of a slot; None for one that is no float32 tensor, whose scale cannot change."""
    if slot[0] == "i":
        return system.read(node, int(slot[1:]))
    if slot[0] == "o":
        return system.tensors.get(node.outputs[int(slot[1:])])
    kind, name = slot.split(":")
    if kind == "x":
        return own.setdefault(slot, system.new()) if slot not in own else own[slot]
    return system.attributes.setdefault((node, name), system.new())


def _tie(system: System, one: int | None, other: int | None) -> None:
    """Both are equal; where one of them is no variable, the other is pinned."""
    first, second = (ZERO if each is None else each for each in (one, other))
    if first != second:
        system.equations.append({first: 1, second: -1})


def _handed_out(system: System, value: ir.Value) -> int | None:
    """The variable of what a body hands out; a constant that it hands out as it is has none and keeps its scale."""
    return system.tensors.get(value)


def _tie_if(system: System, node: ir.Node, bodies: Sequence[ir.Graph]) -> None:
    for position, result in enumerate(node.outputs):
        for body in bodies:
            if is_tensor(result):
                _tie(system, system.tensors[result], _handed_out(system, body.outputs[position]))


def _tie_loop(system: System, node: ir.Node, bodies: Sequence[ir.Graph]) -> None:
    """Tie carried values before, in and behind every turn; a collected one has the exponent that it has in the body."""
    (body,) = bodies
    carried = len(body.inputs) - 2
    _tie_carried(system, node, body, range(carried), ahead=2, inside=2, made=1)
    for position in range(carried, len(node.outputs)):
        if is_tensor(node.outputs[position]):
            _tie(system, system.tensors[node.outputs[position]], _handed_out(system, body.outputs[position + 1]))


def _tie_scan(system: System, node: ir.Node, bodies: Sequence[ir.Graph]) -> None:
    (body,) = bodies
    scanned = node.attributes.get_int("num_scan_inputs", 0)
    carried = len(body.inputs) - scanned
    if len(node.inputs) != len(body.inputs):  # before opset 9, with the lengths of its sequences in front
        _pin_all(system, node)
        _pin(system, (*body.inputs, *body.outputs))
        return
    _tie_carried(system, node, body, range(carried), ahead=0, inside=0, made=0)
    for position in range(carried, len(node.inputs)):
        if is_tensor(body.inputs[position]):
            _tie(system, system.read(node, position), system.tensors[body.inputs[position]])
    for position in range(carried, len(node.outputs)):
        if is_tensor(node.outputs[position]):
            _tie(system, system.tensors[node.outputs[position]], _handed_out(system, body.outputs[position]))


def _tie_carried(
    system: System, node: ir.Node, body: ir.Graph, positions: range, *, ahead: int, inside: int, made: int
) -> None:
    for position in positions:
        held = body.inputs[position + inside]
        if not is_tensor(held):
            continue
        variable = system.tensors[held]
        _tie(system, variable, system.read(node, position + ahead))
        _tie(system, variable, _handed_out(system, body.outputs[position + made]))
        if is_tensor(node.outputs[position]):
            _tie(system, variable, system.tensors[node.outputs[position]])


CONTROL_FLOW = {"If": _tie_if, "Loop": _tie_loop, "Scan": _tie_scan}
