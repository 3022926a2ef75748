"""Types that follow from operator schemas, where ONNX's inference stops at an unknown operator.

Operands that share a type variable have one type. So the types of an ONNX Runtime operator's outputs follow from its inputs,
and that of a custom operator's output from the other inputs of its readers: the other factor of a MatMul, say.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from demi.errors import InputError
from demi.exporter.operators import schemas
from demi.tensors import DType


class SchemaTypes(ir.passes.InPlacePass):
    """Give values without a type the only one that the schemas allow.

    Before: nodes are sorted, and ONNX has inferred what it can. After: no further type follows from those of the other
    operands of a value's producer or readers, and the default zero of a ConstantOfShape is written out with its type.
    Known types are unchanged.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = _write_zeros(model)
        while sum(_unify(node, schemas.opset_version(node, model)) for node in _open_nodes(model)):
            modified = True
        return ir.passes.PassResult(model, modified)


def _write_zeros(model: ir.Model) -> bool:
    """Write out the default float32 zero of every ConstantOfShape without a value; return whether there was one."""
    nodes = [node for node in model.graph.all_nodes() if (node.op_type, node.domain) == ("ConstantOfShape", "")]
    silent = [node for node in nodes if "value" not in node.attributes]
    for node in silent:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, np.float32)))
    return bool(silent)


def _open_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes with an operand of unknown type, except those with subgraphs, whose types follow other rules."""
    nodes = (node for node in model.graph.all_nodes() if not schemas.has_body(node))
    return [node for node in nodes if any(value.type is None for value in _operands(node))]


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    yield from node.outputs


def _unify(node: ir.Node, version: int) -> bool:
    """Carry types from the node's known operands over to the unknown; whether there was one."""
    schema = schemas.find_schema(node.op_type, node.domain, version)
    if schema is None:
        return False
    inputs = [(schema.variable_of_input(i), value) for i, value in enumerate(node.inputs) if value is not None]
    outputs = [(schema.variable_of_output(i), value) for i, value in enumerate(node.outputs)]
    both = [(variable, value) for variable, value in (*inputs, *outputs) if "#" not in variable]
    known = {variable: value.type for variable, value in both if value.type is not None}
    modified = False
    for variable, value in both:
        kind = known.get(variable) or _plain_type(variable)
        if value.type is None and kind is not None:
            value.type, modified = kind, True
            if value in node.inputs:  # a type that only a reader determines is worth a remark in the plan
                value.meta[schemas.INFERRED_FOR] = node.op_type
    return modified


def _plain_type(text: str) -> ir.TypeProtocol | None:
    """Return the type of an operand without a type variable, such as `tensor(int64)`."""
    if not text.startswith("tensor("):
        return None
    try:
        return ir.TensorType(ir.DataType(DType.parse(text).onnx))
    except InputError:  # a type that no model's input can have
        return None
