"""The tensors that replace containers: tables for maps, elements for sequences, contents for optionals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from demi.exporter.passes.declared_shapes import node_values, without_large_weights
from demi.tensors import Array

CLASSES = ("classlabels_int64s", "classlabels_strings")
"""Attributes in which a ZipMap holds the keys of its maps, in the order of its table's columns."""


def without_maps(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the message without the types of its maps; the message itself where it has none."""
    if not any(_is_map(value.type) for value in (*proto.graph.output, *proto.graph.value_info)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in (*copy.graph.output, *copy.graph.value_info):
        if _is_map(value.type):
            value.ClearField("type")
    return copy


def _is_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _is_map(kind.sequence_type.elem_type)
    return kind.HasField("map_type")


class ContainerTensors:
    """Writes the tensors that replace containers into a graph. Owns the graph and the sentences about it."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        inferred = onnx.shape_inference.infer_shapes(without_large_weights(model))
        self._shapes = {value.name: value.shape for value in node_values(ir.from_proto(without_maps(inferred)))}
        self.notes: list[str] = []

    def replace_input(self, value: ir.Value, *, present: bool) -> None:
        """Replace an optional input by a tensor, or remove it where it is never present."""
        kind = value.type
        readers = [use.node for use in value.uses()]
        if not isinstance(kind, ir.OptionalType) or not isinstance(kind.elem_type, ir.TensorType):
            return
        if any(node.op_type not in ("OptionalHasElement", "OptionalGetElement") for node in readers):
            return
        stand_in = value
        if present:
            value.type = kind.elem_type
            self.notes.append(f"`{value.name}` is optional in the source, and required in the bundle")
        else:
            size = [dim if isinstance(dim, int) else 1 for dim in value.shape or ()]
            stand_in = self._constant(f"{value.name}_absent", np.zeros(size, kind.elem_type.dtype.numpy()))
            self.notes.append(
                f"`{value.name}` is optional in the source, and not in the samples: the bundle leaves it out"
            )
        has = self._constant(f"{value.name}_is_there", np.array(present))
        for node in readers:
            _replace(node, ir.node("Identity", [has if node.op_type == "OptionalHasElement" else stand_in]))
        if not present:
            self._graph.inputs.remove(value)

    def replace_output(self, value: ir.Value) -> list[ir.Value]:
        """Return the tensors that replace an output container; the output itself where they are not known."""
        node = value.producer()
        while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is None:
            return [value]
        if node.op_type == "ZipMap":
            return self._table(value, node)
        if isinstance(value.type, ir.OptionalType):
            return self._content(value, node)
        elements = self._elements(node, value)
        if elements is None:
            return self._flat(value)
        names = [f"{value.name}_{index}" for index in range(len(elements))]
        self.notes.append(f"`{value.name}` is a sequence in the source, and the tensors {_listed(names)} in the bundle")
        return [self._named(element, name, value) for element, name in zip(elements, names, strict=True)]

    def _table(self, value: ir.Value, node: ir.Node) -> list[ir.Value]:
        table, name = node.inputs[0], value.name or ""
        assert table is not None
        labels = next((node.attributes[name].value for name in CLASSES if name in node.attributes), ())
        given = self._named(table, name, table)
        given.type = table.type or ir.TensorType(ir.DataType.FLOAT)
        if given.shape is None:
            given.shape = ir.Shape([None, len(labels)])
        shown = ", ".join(label.decode() if isinstance(label, bytes) else str(label) for label in labels[:6])
        more = ", ..." if len(labels) > 6 else ""
        self.notes.append(
            f"`{name}` is a sequence of maps in the source, and a table in the bundle: a column for each of "
            f"the classes {shown}{more}"
        )
        return [given]

    def _content(self, value: ir.Value, node: ir.Node) -> list[ir.Value]:
        held = node.inputs[0] if node.op_type == "Optional" and node.inputs else None
        if held is None or not isinstance(held.type or ir.TensorType(ir.DataType.FLOAT), ir.TensorType):
            return [value]
        kind, name = value.type, value.name or ""
        assert isinstance(kind, ir.OptionalType)
        given = self._named(held, name, value)
        given.type = kind.elem_type
        self.notes.append(f"`{name}` is optional in the source, but always present: it is a tensor in the bundle")
        return [given]

    def _elements(self, node: ir.Node, value: ir.Value) -> list[ir.Value] | None:
        """Return the elements of a sequence whose length is known."""
        if node.op_type == "SequenceConstruct":
            return [each for each in node.inputs if each is not None]
        count = self._pieces(node) if node.op_type == "SplitToSequence" else None
        if count is None:
            return None
        taken = []
        for index in range(count):
            position = self._constant(f"{value.name}_position_{index}", np.array(index, np.int64))
            taken.append(self._node("SequenceAt", [node.outputs[0], position], f"{value.name}_at_{index}"))
        return taken

    def _pieces(self, node: ir.Node) -> int | None:
        """Return the number of elements that a SplitToSequence makes; None when its axis or its pieces are not known."""
        source, axis = node.inputs[0], node.attributes.get_int("axis", 0)
        shape = None if source is None else source.shape or self._shapes.get(source.name)
        size = shape[axis] if shape is not None else None
        if len(node.inputs) < 2 or (wanted := node.inputs[1]) is None:
            return size if isinstance(size, int) else None
        pieces = ir.convenience.get_const_tensor(wanted)
        if pieces is None:
            return None
        numbers = pieces.numpy()
        if numbers.ndim:
            return len(numbers)
        return -(-size // int(numbers)) if isinstance(size, int) else None

    def _flat(self, value: ir.Value) -> list[ir.Value]:
        """Return the concatenated elements of a sequence of any length, and the shape of each."""
        kind = value.type
        if not isinstance(kind, ir.SequenceType) or not isinstance(kind.elem_type, ir.TensorType):
            return [value]
        name, dtype = value.name or "", kind.elem_type.dtype
        length = self._node("SequenceLength", [value], f"{name}_length")
        empty = self._constant(f"{name}_empty", np.zeros(0, dtype.numpy()))
        always = self._constant(f"{name}_always", np.array(True))
        loop = ir.node("Loop", [length, always, empty], num_outputs=2, attributes={"body": _body(value, dtype)})
        loop.name = f"{name}_elements"
        values, shapes = loop.outputs
        values.name, values.type, values.shape = f"{name}_values", ir.TensorType(dtype), ir.Shape([f"{name}_elements"])
        rank = len(value.shape) if value.shape is not None else f"{name}_rank"
        shapes.name, shapes.type = f"{name}_shapes", ir.TensorType(ir.DataType.INT64)
        shapes.shape = ir.Shape([f"{name}_length", rank])
        self._graph.append(loop)
        self.notes.append(
            f"`{name}` is a sequence of any length in the source, and two tensors in the bundle: `{name}_values` has its "
            f"elements concatenated, `{name}_shapes` the shape of each"
        )
        return [values, shapes]

    def _named(self, value: ir.Value, name: str, like: ir.Value) -> ir.Value:
        """Return `value` under a public name."""
        taken = [each for node in self._graph.all_nodes() for each in node.outputs if each.name == name]
        for each in taken:
            each.name = f"{name}_contained"
        given = self._node("Identity", [value], name)
        kind = like.type
        given.type = kind.elem_type if isinstance(kind, ir.SequenceType | ir.OptionalType) else kind
        given.shape = value.shape if value.shape is not None else like.shape
        return given

    def _node(self, operator: str, inputs: list[ir.Value], name: str) -> ir.Value:
        node = ir.node(operator, inputs, name=f"demi_{name}")
        node.outputs[0].name = name
        self._graph.append(node)
        return node.outputs[0]

    def _constant(self, name: str, array: Array) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _body(sequence: ir.Value, dtype: ir.DataType) -> ir.Graph:
    """Return the body of the loop that concatenates a sequence's elements."""
    name = sequence.name
    whole, integer = ir.TensorType(ir.DataType.INT64), ir.Shape([])
    turn = ir.Value(name=f"{name}_turn", type=whole, shape=integer)
    going = ir.Value(name=f"{name}_going", type=ir.TensorType(ir.DataType.BOOL), shape=integer)
    before = ir.Value(name=f"{name}_before", type=ir.TensorType(dtype), shape=ir.Shape([None]))
    line = ir.Value(name=f"{name}_line", type=whole, shape=ir.Shape([1]))
    line.const_value = ir.tensor(np.array([-1], np.int64), name=line.name)
    element = ir.node("SequenceAt", [sequence, turn])
    flat = ir.node("Reshape", [element.outputs[0], line])
    after = ir.node("Concat", [before, flat.outputs[0]], attributes={"axis": 0})
    shape = ir.node("Shape", [element.outputs[0]])
    still = ir.node("Identity", [going])
    nodes = [element, flat, after, shape, still]
    for label, node in zip(("element", "flat", "after", "shape", "still"), nodes, strict=True):
        node.name = node.outputs[0].name = f"{name}_{label}"
    for node, kind in ((still, going.type), (after, before.type), (shape, whole)):
        node.outputs[0].type = kind
    still.outputs[0].shape, after.outputs[0].shape = integer, ir.Shape([None])
    shape.outputs[0].shape = ir.Shape([None])
    outputs = [still.outputs[0], after.outputs[0], shape.outputs[0]]
    body = ir.Graph([turn, going, before], outputs, nodes=nodes, name=f"{name}_body")
    body.register_initializer(line)
    return body


def _replace(node: ir.Node, new: ir.Node) -> None:
    """Put `new` in the place of a node with one output."""
    graph, old, made = node.graph, node.outputs[0], new.outputs[0]
    assert graph is not None
    new.name, made.type, made.shape = node.name, old.type, old.shape
    graph.insert_before(node, new)
    old.replace_all_uses_with(made, replace_graph_outputs=True)
    name, old.name = old.name, None
    made.name = name
    graph.remove(node, safe=True)


def _listed(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
