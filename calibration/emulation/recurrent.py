"""RNN, GRU and LSTM step by step, with the states between steps stored in half.

The node becomes a Scan over time whose body is the same operator for one step. Activations, clips, peepholes and biases
therefore keep their meaning, and the emulator rounds the states after each step.

Precision of the states between steps:

| device | hidden state | cell state of an LSTM |
| --- | --- | --- |
| OpenVINO, constant weights (measured in BF16) | half | single, rounded at the end |
| OpenVINO, weights that are inputs (measured in BF16): a loop of primitives | half, and every gate | half |
| PyTorch on a CPU (measured): a loop of primitives, but for the LSTM in BF16 | half, and every gate | half |
| TensorRT (by its documentation: a loop) | half | half |
| cuDNN (by its documentation: the type of `hy` and `cy`) | half | half |

Here, both states are rounded, and so is the sum of a node's two biases, which OpenVINO stores as one. Gates are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from demi.calibration.graph_pieces import (
    Spelled,
    body_of,
    constant,
    dtype_of,
    first,
    held,
    operand,
    shape_of,
    typed,
    with_axis,
    zeros,
)

RECURRENT = frozenset({"RNN", "GRU", "LSTM"})

OLDEST_OPSET = 11
"""The oldest opset with all operators used here: Range, ReverseSequence and Scan in its current form."""

_W, _R, _B, _LENS, _H, _C, _P = 1, 2, 3, 4, 5, 6, 7
_PER_DIRECTION = (_W, _R, _B, _P)
"""Operands with one part for each direction along their first axis."""


def takes_steps(node: ir.Node, opset: int) -> bool:
    """Return whether a recurrent node can be written step by step.

    Unsupported are a batch axis in front (`layout`), and both directions with parameters for activations.
    """
    both = _directions(node) == 2
    return (
        opset >= OLDEST_OPSET
        and "hidden_size" in node.attributes
        and not node.attributes.get_int("layout", 0)
        and not (both and {"activation_alpha", "activation_beta"} & node.attributes.keys())
    )


def in_steps(node: ir.Node, opset: int) -> Spelled | None:
    """Return the node as one Scan per direction; None for a single step, whose states are stored anyway."""
    shape = first(node).shape
    if not takes_steps(node, opset) or (shape is not None and shape[0] == 1):
        return None
    return _Steps(node, opset).spelled()


def _directions(node: ir.Node) -> int:
    return 2 if _direction(node) == "bidirectional" else 1


def _direction(node: ir.Node) -> str:
    attribute = node.attributes.get("direction")
    return attribute.as_string() if attribute is not None else "forward"


@dataclass(frozen=True, slots=True)
class _Direction:
    """One direction: its operands by position, its initial states and its activations."""

    operands: dict[int, ir.Value]
    states: list[ir.Value]
    backwards: bool
    activations: tuple[str, ...]


class _Steps:
    """Builds the replacement of one recurrent node. Owns the list of new nodes."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self._node = node
        self._opset = opset
        self._kind = dtype_of(node)
        self._count = _directions(node)
        self._states = 2 if node.op_type == "LSTM" else 1
        self._lens = operand(node, _LENS)
        self._nodes: list[ir.Node] = []

    def spelled(self) -> Spelled:
        """Return the nodes, with the replacements of those of Y, Y_h and Y_c that the node has."""
        self._steps = self._size(first(self._node), 0)
        some = ir.node("Cast", [self._steps], attributes={"to": int(ir.DataType.BOOL)})
        self._any_steps = self._add(some, ir.DataType.BOOL)
        made = [self._scan(each, number) for number, each in enumerate(self._split())]
        results = [self._joined([values[-1] for values in made], 1)]
        results += [self._joined([values[state] for values in made], 0) for state in range(self._states)]
        return Spelled(self._nodes, results[: len(self._node.outputs)])

    def _add(self, node: ir.Node, *kinds: ir.DataType) -> ir.Value:
        self._nodes.append(typed(node, *(kinds or (self._kind,))))
        return node.outputs[0]

    def _split(self) -> list[_Direction]:
        """Return the operands of each direction."""
        given = {position: operand(self._node, position) for position in _PER_DIRECTION}
        given[_B] = self._one_bias(given[_B])
        parts = {position: self._parts(value) for position, value in given.items() if value is not None}
        states = [self._parts(self._initial(position)) for position in (_H, _C)[: self._states]]
        named = self._node.attributes.get("activations")
        names = tuple(named.as_strings()) if named is not None else ()
        each = len(names) // self._count
        return [
            _Direction(
                {position: values[number] for position, values in parts.items()},
                [values[number] for values in states],
                _direction(self._node) == "reverse" or number == 1,
                names[number * each : (number + 1) * each],
            )
            for number in range(self._count)
        ]

    def _one_bias(self, biases: ir.Value | None) -> ir.Value | None:
        """Return the sum of both biases, which kernels store in half, and zeros for the second one.

        In a GRU with `linear_before_reset`, the last gate's second bias is kept: it is multiplied by the reset gate.
        """
        if biases is None:
            return None
        one, other = self._halves(biases, 1)
        total = self._add(ir.node("Add", [one, other]))
        rest = self._add(ir.node("Sub", [other, other]))
        if self._node.attributes.get_int("linear_before_reset", 0):
            gates = np.repeat([True, True, False], self._node.attributes["hidden_size"].as_int())
            self._nodes.append(constant(gates))
            merged = self._nodes[-1].outputs[0]
            total = self._add(ir.node("Where", [merged, total, one]))
            rest = self._add(ir.node("Where", [merged, rest, other]))
        return self._add(ir.node("Concat", [total, rest], attributes={"axis": 1}))

    def _parts(self, value: ir.Value) -> list[ir.Value]:
        return [value] if self._count == 1 else self._halves(value, 0)

    def _halves(self, value: ir.Value, axis: int) -> list[ir.Value]:
        split = ir.node("Split", [value], attributes={"axis": axis}, num_outputs=2)
        if self._opset >= 18:
            split.attributes["num_outputs"] = ir.AttrInt64("num_outputs", 2)
        self._add(split, self._kind, self._kind)
        return list(split.outputs)

    def _initial(self, position: int) -> ir.Value:
        """Return the initial states: those given, or zeros."""
        value = operand(self._node, position)
        if value is not None:
            return value
        recurrence = operand(self._node, _R)
        assert recurrence is not None
        sizes = [self._size(recurrence, 0), self._size(first(self._node), 1), self._size(recurrence, 2)]
        whole = self._add(ir.node("Concat", sizes, attributes={"axis": 0}), ir.DataType.INT64)
        self._nodes.append(zeros(whole, self._kind))
        return self._nodes[-1].outputs[0]

    def _scan(self, each: _Direction, number: int) -> list[ir.Value]:
        """Add the Scan of one direction; return its last states, and its outputs of all steps."""
        turns = each.backwards and self._lens is not None
        sequence = self._never_empty(self._turned(first(self._node)) if turns else first(self._node))
        states = [held(f"demi_state{state}", self._kind) for state in range(self._states)]
        step = held("demi_step", self._kind)
        inputs, scanned = [*states, step], [self._moved("Unsqueeze", sequence)]
        nodes, new, shown = self._step(step, states, each)
        if self._lens is not None:
            time = held("demi_time", ir.DataType.INT64)
            inputs, scanned = [*inputs, time], [*scanned, self._times(sequence)]
            nodes, new, shown = self._frozen(nodes, states, time)
        name = f"{self._node.name}_demi_body{number}"
        body = body_of(inputs, [*new, shown], nodes, name)
        attributes: dict[str, Any] = {"body": body, "num_scan_inputs": len(scanned)}
        if each.backwards and not turns:
            attributes |= {"scan_input_directions": [1], "scan_output_directions": [1]}
        scan = ir.node("Scan", [*each.states, *scanned], attributes=attributes, num_outputs=self._states + 1)
        self._add(scan, *[self._kind] * (self._states + 1))
        *last, every = scan.outputs
        last = self._none_without_steps(last)
        every = self._add(ir.node("Slice", [every, self._integers(0), self._steps, self._integers(0)]))
        if turns:
            every = self._moved("Unsqueeze", self._turned(self._moved("Squeeze", every)))
        return [*last, every]

    def _step(
        self, step: ir.Value, states: list[ir.Value], each: _Direction
    ) -> tuple[list[ir.Node], list[ir.Value], ir.Value]:
        """Return the operator for one step: the nodes, the new states, and the step's output."""
        cell = self._cell(step, states, each)
        shown = typed(ir.node("Identity", [cell.outputs[1]]), self._kind)
        return [cell, shown], list(cell.outputs[1:]), shown.outputs[0]

    def _cell(self, step: ir.Value, states: list[ir.Value], each: _Direction) -> ir.Node:
        """Return the operator for one step."""
        wanted = {_W: None, _R: None, _B: None, _LENS: None} | dict(zip((_H, _C), states, strict=False)) | each.operands
        last = max(position for position, value in wanted.items() if value is not None)
        inputs = [step, *(wanted.get(position) for position in range(1, last + 1))]
        kept = {
            name: value for name, value in self._node.attributes.items() if name not in ("direction", "activations")
        }
        if each.activations:
            kept["activations"] = ir.AttrStrings("activations", each.activations)
        cell = ir.Node("", self._node.op_type, inputs, attributes=list(kept.values()), num_outputs=self._states + 1)
        return typed(cell, *[self._kind] * (self._states + 1))

    def _frozen(
        self, step: list[ir.Node], states: list[ir.Value], time: ir.Value
    ) -> tuple[list[ir.Node], list[ir.Value], ir.Value]:
        """Return the same step, except that behind a sequence's end its states are kept and its output is zero."""
        cell, runs = step[0], typed(ir.node("Less", [time, self._lens_column()]), ir.DataType.BOOL)
        kept = [
            typed(ir.node("Where", [runs.outputs[0], new, old]), self._kind)
            for new, old in zip(cell.outputs[1:], states, strict=True)
        ]
        nought = constant(np.zeros((), self._kind.numpy()), self._kind)
        shown = typed(ir.node("Where", [runs.outputs[0], cell.outputs[1], nought.outputs[0]]), self._kind)
        return [cell, runs, *kept, nought, shown], [node.outputs[0] for node in kept], shown.outputs[0]

    def _lens_column(self) -> ir.Value:
        """Return the sequence lengths as int64, one row per sequence."""
        assert self._lens is not None
        wide = self._add(ir.node("Cast", [self._lens], attributes={"to": int(ir.DataType.INT64)}), ir.DataType.INT64)
        nodes = with_axis("Unsqueeze", wide, 1, self._opset, ir.DataType.INT64)
        self._nodes += nodes
        return nodes[-1].outputs[0]

    def _none_without_steps(self, states: list[ir.Value]) -> list[ir.Value]:
        """Return the last states, with zeros for sequences without steps, as ONNX Runtime returns them."""
        some = self._any_steps
        if self._lens is not None:
            to_bool = ir.node("Cast", [self._lens_column()], attributes={"to": int(ir.DataType.BOOL)})
            some = self._add(to_bool, ir.DataType.BOOL)
        nought = constant(np.zeros((), self._kind.numpy()), self._kind)
        self._nodes.append(nought)
        return [self._add(ir.node("Where", [some, state, nought.outputs[0]])) for state in states]

    def _never_empty(self, sequence: ir.Value) -> ir.Value:
        """Return the sequence, with one step of zeros where it is empty: ONNX Runtime's Scan rejects empty sequences."""
        missing = self._add(
            ir.node("Where", [self._any_steps, self._integers(0), self._integers(1)]), ir.DataType.INT64
        )
        sizes = [missing, self._size(sequence, 1), self._size(sequence, 2)]
        whole = self._add(ir.node("Concat", sizes, attributes={"axis": 0}), ir.DataType.INT64)
        self._nodes.append(zeros(whole, self._kind))
        parts = [sequence, self._nodes[-1].outputs[0]]
        return self._add(ir.node("Concat", parts, attributes={"axis": 0}))

    def _integers(self, *numbers: int) -> ir.Value:
        self._nodes.append(constant(np.array(numbers, np.int64)))
        return self._nodes[-1].outputs[0]

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the size of a value along an axis, as a tensor with one element."""
        shape, index = shape_of(value), self._integers(axis)
        self._nodes.append(shape)
        return self._add(ir.node("Gather", [shape.outputs[0], index]), ir.DataType.INT64)

    def _times(self, sequence: ir.Value) -> ir.Value:
        """Return the indices of all steps: 0, 1, 2, ..."""
        shape = shape_of(sequence)
        at, nought, one = (constant(np.array(number, np.int64)) for number in (0, 0, 1))
        self._nodes += [shape, at, nought, one]
        length = self._add(ir.node("Gather", [shape.outputs[0], at.outputs[0]]), ir.DataType.INT64)
        return self._add(ir.node("Range", [nought.outputs[0], length, one.outputs[0]]), ir.DataType.INT64)

    def _turned(self, sequence: ir.Value) -> ir.Value:
        """Return every sequence reversed within its length; elements behind it stay in place."""
        assert self._lens is not None
        wide = self._add(ir.node("Cast", [self._lens], attributes={"to": int(ir.DataType.INT64)}), ir.DataType.INT64)
        return self._add(ir.node("ReverseSequence", [sequence, wide], attributes={"batch_axis": 1, "time_axis": 0}))

    def _moved(self, op_type: str, value: ir.Value) -> ir.Value:
        """Return the value with the axis for the direction added or removed."""
        nodes = with_axis(op_type, value, 1, self._opset, self._kind)
        self._nodes += nodes
        return nodes[-1].outputs[0]

    def _joined(self, parts: list[ir.Value], axis: int) -> ir.Value:
        if len(parts) == 1:
            return self._add(ir.node("Identity", parts))
        return self._add(ir.node("Concat", parts, attributes={"axis": axis}))
