"""Types in operator schemas: which operands of a node may be half.

The rule comes from `onnx.defs` (for `com.microsoft` from ONNX Runtime), not from a hand-kept list: an operand whose
type is a variable of the schema may be half when the variable's constraint lists float16 (bfloat16), and all operands
that share the variable change together.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir

from demi.float16 import FP16, HalfFormat
from demi.runtime.onnxruntime.session import operator_schemas

FLOAT = ir.DataType.FLOAT
HALF_TYPES = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})

RUNTIME_DOMAINS = frozenset({"", "com.microsoft"})
"""Domains of ONNX Runtime's own operators."""

OUTPUT_TYPE_BY_ATTRIBUTE = {("Cast", "to"), ("ConstantOfShape", "value")}
"""Operators whose output type is given by an attribute and may be half."""

NEVER_HALF = {
    "BitCast": "its result is the bits of its input: another width is another result",
    "EyeLike": "no runtime has a half kernel for it",
    "IsAllFinite": "it looks for infinities, which half produces",
    "MeanVarianceNormalization": "its definition as a function mixes float32 constants with its input's type",
}
"""Operators that stay float32 though their schema allows half, each with the reason."""

STAYS_FLOAT = {("Resize", 1): "`roi` holds coordinates, which need more than eleven bits"}
"""Operands by operator and position that stay float32 though their schema allows half, each with the reason."""


INFERRED_FOR = "demi/inferred for"
"""Metadata key of a value: the reading operator that its type was inferred from."""

NEWEST = 25
"""The newest opset a model may be raised to: as far as onnxscript's converter goes, and TensorRT reads."""


@dataclass(frozen=True, slots=True)
class Operands:
    """The operands of one node that become half when the node does, by position."""

    inputs: frozenset[int]
    outputs: frozenset[int]

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)


NONE = Operands(frozenset(), frozenset())


def opset_version(node: ir.Node, model: ir.Model) -> int:
    """Return the version of the node's operator set that the model imports (0 when it imports none)."""
    return node.version or model.opset_imports.get(node.domain) or 0


@dataclass(frozen=True, slots=True)
class Schema:
    """The types in a schema."""

    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]
    allowed: Mapping[str, frozenset[str]]
    """The types that each type variable may have."""
    since_version: int

    def variable_of_input(self, position: int) -> str:
        """Return the type variable (or plain type) of the input at a position."""
        return _variable(self.inputs, position)

    def variable_of_output(self, position: int) -> str:
        """Return the type variable (or plain type) of the output at a position."""
        return _variable(self.outputs, position)


@dataclass(frozen=True, slots=True)
class Formal:
    """One formal operand: its type variable (or plain type), and whether each of its many operands has its own type."""

    variable: str
    differ: bool = False


@functools.cache
def find_schema(op_type: str, domain: str, version: int) -> Schema | None:
    """Return the operator's schema: ONNX's, else ONNX Runtime's; None for an operator that is in neither."""
    domain = "" if domain == "ai.onnx" else domain
    try:
        return _from_onnx(onnx.defs.get_schema(op_type, max_inclusive_version=version, domain=domain))
    except onnx.defs.SchemaError:
        versions = _runtime_schemas().get((domain, op_type), {})
        newest = max((since for since in versions if since <= version), default=None)
        return None if newest is None else versions[newest]


def is_runtime_operator(node: ir.Node, version: int) -> bool:
    """Return whether a node in ONNX's domain is one of ONNX Runtime's operators, which its files write so."""
    if node.domain not in ("", "ai.onnx") or not find_schema(node.op_type, node.domain, version):
        return False
    return not onnx.defs.has(node.op_type, max_inclusive_version=version, domain="")


@functools.cache
def runtime_has(op_type: str, domain: str) -> bool:
    """Return whether ONNX Runtime has an operator of this name and domain in any version: it may be able to run it."""
    return any((schema.name, schema.domain) == (op_type, domain) for schema in operator_schemas())


@functools.cache
def _runtime_schemas() -> Mapping[tuple[str, str], Mapping[int, Schema]]:
    """ONNX Runtime's operators by domain and name, and by the version each schema holds from."""
    found: dict[tuple[str, str], dict[int, Schema]] = {}
    for schema in operator_schemas():
        if schema.domain in RUNTIME_DOMAINS:
            found.setdefault((schema.domain, schema.name), {})[schema.since_version] = _from_runtime(schema)
    return found


def _from_onnx(schema: Any) -> Schema:
    return Schema(
        tuple(_formal(each.type_str, each.option, each.is_homogeneous) for each in schema.inputs),
        tuple(_formal(each.type_str, each.option, each.is_homogeneous) for each in schema.outputs),
        {each.type_param_str: frozenset(each.allowed_type_strs) for each in schema.type_constraints},
        schema.since_version,
    )


def _from_runtime(schema: Any) -> Schema:
    return Schema(
        tuple(_formal(each.typeStr, each.option, each.isHomogeneous) for each in schema.inputs),
        tuple(_formal(each.typeStr, each.option, each.isHomogeneous) for each in schema.outputs),
        {each.type_param_str: frozenset(each.allowed_type_strs) for each in schema.type_constraints},
        schema.since_version,
    )


def _formal(variable: str, option: Any, is_homogeneous: bool) -> Formal:
    return Formal(variable, differ=option.name == "Variadic" and not is_homogeneous)


def half_operands(node: ir.Node, version: int, half: ir.DataType) -> Operands:
    """Return the float32 operands of `node` that may be `half`; falsy when the schema allows none.

    An output follows an input that shares its type variable, or an attribute (`OUTPUT_TYPE_BY_ATTRIBUTE`).
    """
    schema = find_schema(node.op_type, node.domain, version)
    if schema is None or has_body(node) or why_bound(node, schema, half):
        return NONE
    allowed = {variable: HALF_TYPES[half] in types for variable, types in schema.allowed.items()}
    inputs = [(i, _variable(schema.inputs, i)) for i, value in enumerate(node.inputs) if is_float(value)]
    outputs = [(i, _variable(schema.outputs, i)) for i, value in enumerate(node.outputs) if is_float(value)]
    return Operands(
        frozenset(i for i, variable in inputs if allowed.get(variable, False) and (node.op_type, i) not in STAYS_FLOAT),
        frozenset(i for i, variable in outputs if allowed.get(variable, False)),
    )


def half_since(node: ir.Node, version: int, half: ir.DataType) -> int | None:
    """Return the oldest opset after `version` in which the node takes `half`; None when it already does, or never will."""
    if not 0 < version < NEWEST or node.domain not in ("", "ai.onnx") or half_operands(node, version, half):
        return None
    return next((newer for newer in range(version + 1, NEWEST + 1) if half_operands(node, newer, half)), None)


def is_float(value: ir.Value | None) -> bool:
    """Return whether a value is a float32 tensor (sequences and optionals of tensors are not)."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype is FLOAT


def has_body(node: ir.Node) -> bool:
    """Return whether the node has subgraphs, whose inputs and outputs keep their types: control flow and beam searches."""
    if node.op_type in CONTROL_FLOW:
        return True
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return bool(node.attributes) and any(each.type in bodies for each in node.attributes.values())


def touches_float(node: ir.Node) -> bool:
    """Return whether any operand of the node is a float32 tensor."""
    return any(is_float(value) for value in (*node.inputs, *node.outputs))


def why_bound(node: ir.Node, schema: Schema, half: ir.DataType) -> str:
    """Return why a node cannot be half though its schema may allow it, for users; empty when nothing prevents it.

    Reasons are: an operator of `NEVER_HALF`; a tensor without a type (behind a custom operator, say); an attribute that
    is a float32 tensor, such as the splits of a TreeEnsemble; sequences, which keep the type of their elements; and an
    output whose type the schema ties to no input: it would stay float32 or be undefined.
    """
    if node.op_type in NEVER_HALF:
        return f"{node.op_type}: {NEVER_HALF[node.op_type]}"
    made = (value for value in node.outputs if value.uses() or value.is_graph_output())
    untyped = next((value for value in (*node.inputs, *made) if value is not None and value.type is None), None)
    if untyped is not None:
        return _unknown_type(untyped, node)
    tensors = [a for a in node.attributes.values() if a.type is ir.AttributeType.TENSOR] if node.attributes else []
    for each in tensors:
        if each.as_tensor().dtype is FLOAT and (node.op_type, each.name) not in OUTPUT_TYPE_BY_ATTRIBUTE:
            return f"the attribute `{each.name}` of {node.op_type} is a float32 tensor itself"
    if any(_is_container(schema, formal.variable) for formal in (*schema.inputs, *schema.outputs)):
        return f"{node.op_type} works on sequences or optionals, which keep the type of their tensors"
    return (
        f"{node.op_type} returns the type given by an attribute, which is float32"
        if _is_open(node, schema, half)
        else ""
    )


def _is_open(node: ir.Node, schema: Schema, half: ir.DataType) -> bool:
    """Return whether a float output may be half by the schema, and nothing the lowering changes makes it so."""
    if any(node.op_type == op and name in node.attributes for op, name in OUTPUT_TYPE_BY_ATTRIBUTE):
        return False
    bound = {_variable(schema.inputs, i) for i, value in enumerate(node.inputs) if value is not None}
    made = {_variable(schema.outputs, i) for i, value in enumerate(node.outputs) if is_float(value)}
    return any(HALF_TYPES[half] in schema.allowed.get(variable, ()) for variable in made - bound)


def _unknown_type(value: ir.Value, reader: ir.Node) -> str:
    maker = value.producer()
    where = f" behind {maker.op_type}" if maker is not None and maker is not reader else ""
    return f"the type of `{value.name}` is not known{where}"


def _is_container(schema: Schema, variable: str) -> bool:
    """Return whether a type variable allows only sequences or optionals."""
    allowed = schema.allowed.get(variable, frozenset())
    return bool(allowed) and not any(text.startswith("tensor(") for text in allowed)


def _variable(formals: Sequence[Formal], position: int) -> str:
    """Return the type variable (or plain type) of the operand at a position; the last formal may be variadic."""
    if not formals:
        return ""
    formal = formals[min(position, len(formals) - 1)]
    return f"{formal.variable}#{position}" if formal.differ else formal.variable


def half_dtype(fmt: HalfFormat) -> ir.DataType:
    """Return the ONNX type of a half format."""
    return ir.DataType.FLOAT16 if fmt is FP16 else ir.DataType.BFLOAT16
