"""Lower: carry out a precision plan by converting weights to half and inserting casts where precisions change.

Every plan becomes a graph here, in `apply_plan`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from demi.calibration.graph_pieces import place_behind
from demi.calibration.weights import as_ir_array, constant_loss, half_weight
from demi.errors import ConversionError
from demi.exporter.operators import schemas
from demi.exporter.operators.epsilons import floored
from demi.exporter.operators.mask_constants import saturate
from demi.exporter.operators.schemas import half_dtype
from demi.exporter.passes.tidy import tidy
from demi.float16 import HalfFormat, HalfLoss, half_format
from demi.plan import PrecisionPlan
from demi.tensors import Array

OPSET_OF_CASTS = 18
"""The standard operators' opset where a model of other domains alone imports none."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """A mixed-precision model and what its weights lost."""

    model: ir.Model
    casts: int
    """The number of casts inserted where the plan changes precision."""
    losses: dict[str, HalfLoss] = field(default_factory=dict)
    """Weights whose values overflow or vanish in half, by name."""
    modified: bool = True
    """True if the model differs from the prepared one."""


def apply_plan(
    prepared: ir.Model, plan: PrecisionPlan, *, half_io: bool = False, half_names: AbstractSet[str] = frozenset()
) -> Lowered:
    """Return the mixed-precision model for `plan` as a new model; `prepared` is not changed.

    Float inputs and outputs become half with `half_io`, and those called `half_names` in any case.

    Before: the model went through `prepare`. After: a node that the plan calls half has every operand that its schema
    allows in half; all other operands keep their type; a tensor that changes precision is cast once in each direction,
    next to its producer; each weight is stored once for each precision that uses it; the model is tidy (`passes.tidy`);
    public names, order and (without `half_io`) types are unchanged. Raises ConversionError when a half node cannot take
    half.
    """
    fmt = half_format(plan.precision)
    lowering = _Lowering(prepared.clone(), plan, fmt)
    border = {value.name or "" for value in (*prepared.graph.inputs, *prepared.graph.outputs)}
    public = border if half_io else border & half_names
    lowering.make_inputs_half(public)
    lowering.make_outputs_half()
    lowering.connect_operands()
    lowering.restore_graph_outputs(public)
    modified = lowering.modified
    tidied = tidy(lowering.model)
    casts = sum(cast.graph is not None for cast in lowering.casts)  # tidying may have removed some
    return Lowered(lowering.model, casts, lowering.losses, modified or tidied)


class _Lowering:
    """The state of one lowering. Owns the model and the casts it has inserted."""

    def __init__(self, model: ir.Model, plan: PrecisionPlan, fmt: HalfFormat) -> None:
        self.model = model
        self.fmt = fmt
        self.half = half_dtype(fmt)
        self.casts: list[ir.Node] = []
        self._masks, self._epsilons = plan.masks, plan.epsilons
        self.losses: dict[str, HalfLoss] = {}
        self._converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._made_half: set[ir.Value] = set()
        """Values that are half because of the plan; half parts of the source model are not touched."""
        self._renamed: set[ir.Value] = set()
        """Values that were given a public name."""
        # A snapshot: the casts inserted below are not part of the plan.
        self._nodes = [node for node in model.graph.all_nodes() if schemas.touches_float(node)]
        self._operands = {node: self._half_operands(node, plan) for node in self._nodes}
        self._names = {value.name for value in _all_values(model)} | {node.name for node in model.graph.all_nodes()}

    @property
    def modified(self) -> bool:
        """Return whether anything has become half."""
        return bool(self._made_half or self._converted)

    def make_inputs_half(self, public: AbstractSet[str]) -> None:
        """Make the float32 inputs with these names half."""
        for value in self.model.graph.inputs:
            if value.name in public and schemas.is_float(value):
                value.type = ir.TensorType(self.half)
                self._made_half.add(value)
                if value.const_value is not None:  # a default that callers may replace
                    value.const_value = self._half_tensor(value, value.name or "")

    def make_outputs_half(self) -> None:
        """Make the outputs of half nodes half, and the attributes that name the type."""
        for node, operands in self._operands.items():
            for position in operands.outputs:
                node.outputs[position].type = ir.TensorType(self.half)
                self._made_half.add(node.outputs[position])
            if operands.outputs:
                _retype_attribute(node, self.half)

    def connect_operands(self) -> None:
        """Give every float operand its value in the precision it needs."""
        for node, operands in self._operands.items():
            for position, value in enumerate(node.inputs):
                if value is None or value.dtype not in (schemas.FLOAT, self.half):
                    continue
                if position in operands.inputs:
                    node.replace_input_with(position, self._as(value, self.half))
                elif value in self._made_half:
                    node.replace_input_with(position, self._as(value, schemas.FLOAT))

    def restore_graph_outputs(self, public: AbstractSet[str]) -> None:
        """Restore the types and names of the outputs of the graph and of its subgraphs; `public` ones become half."""
        for graph in (self.model.graph, *self.model.graph.subgraphs()):
            for position, value in enumerate(graph.outputs):
                want_half = graph is self.model.graph and value.name in public
                if want_half and schemas.is_float(value):
                    graph.outputs[position] = self._public(value, self.half)
                elif not want_half and value in self._made_half:
                    graph.outputs[position] = self._public(value, schemas.FLOAT)

    def _half_operands(self, node: ir.Node, plan: PrecisionPlan) -> schemas.Operands:
        if not plan.is_half(node.name or ""):
            return schemas.NONE
        operands = schemas.half_operands(node, schemas.opset_version(node, self.model), self.half)
        if not operands:
            raise ConversionError(
                f"the plan has `{node.name}` in half, but {node.op_type} does not accept {self.fmt.name} here",
                hint="mark it `single` in the plan",
            )
        return operands

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return `value` in `dtype`: itself, a converted weight, or one shared cast."""
        if value.dtype is dtype:
            return value
        key = (value, dtype)
        if key not in self._converted:
            is_weight = value.is_initializer() and not value.is_graph_input() and value.const_value is not None
            self._converted[key] = self._weight(value) if is_weight else self._cast(value, dtype)
        return self._converted[key]

    def _weight(self, value: ir.Value) -> ir.Value:
        """Return a half copy of a weight, stored beside the original (which is removed when it becomes unused)."""
        assert value.graph is not None
        name = self._fresh(f"{value.name}_{self.fmt.name}")
        tensor = self._half_tensor(value, name)
        half = ir.Value(
            name=name,
            shape=value.shape or ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(self.half),
            const_value=tensor,
        )
        value.graph.register_initializer(half)
        return half

    def _half_tensor(self, value: ir.Value, name: str) -> ir.TensorProtocol:
        """Return a constant in half, and record its losses."""
        assert value.const_value is not None
        is_mask, is_epsilon = value.name in self._masks, value.name in self._epsilons
        loss = constant_loss(value, self.fmt)
        if is_mask:  # values that overflow are clamped on purpose, and still mask
            loss = replace(loss, overflowed=0)
        if is_epsilon:  # and those that vanish are half's smallest number
            loss = replace(loss, vanished=0)
        if loss:
            self.losses[value.name or ""] = loss

        def change(numbers: Array) -> Array:
            numbers = saturate(numbers, self.fmt) if is_mask else numbers
            return floored(numbers, self.fmt) if is_epsilon else numbers

        return half_weight(value.const_value, self.fmt, name, change)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Insert a Cast right after the producer, so that every scope that sees the value also sees the cast."""
        suffix = self.fmt.name if dtype is self.half else "fp32"
        self.model.opset_imports.setdefault("", OPSET_OF_CASTS)
        cast = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=self._fresh(f"{value.name}_to_{suffix}"))
        output = cast.outputs[0]
        output.name = self._fresh(f"{value.name}_{suffix}")
        output.shape = value.shape
        output.type = ir.TensorType(dtype)
        place_behind(value, [cast])
        self.casts.append(cast)
        return output

    def _public(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return `value` in `dtype`, shared with its other readers, under the public name and metadata."""
        restored = self._as(value, dtype)
        if not value.is_graph_input() and restored not in self._renamed:
            name = value.name
            value.name = self._fresh(f"{name}_{self.fmt.name if dtype is schemas.FLOAT else 'fp32'}")
            restored.name = name
            restored.doc_string = value.doc_string
            restored.metadata_props.update(value.metadata_props)
            self._renamed.add(restored)
        return restored

    def _fresh(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            candidate, count = f"{name}_{count}", count + 1
        self._names.add(candidate)
        return candidate


def _retype_attribute(node: ir.Node, half: ir.DataType) -> None:
    for op_type, name in schemas.OUTPUT_TYPE_BY_ATTRIBUTE:
        if node.op_type != op_type or name not in node.attributes:
            continue
        if name == "value":
            fmt = half_format("fp16" if half is ir.DataType.FLOAT16 else "bf16")
            tensor = node.attributes[name].as_tensor()
            node.attributes[name] = ir.AttrTensor(name, ir.Tensor(as_ir_array(tensor.numpy(), fmt), dtype=half))
        else:
            node.attributes[name] = ir.AttrInt64(name, int(half))


def _all_values(model: ir.Model) -> list[ir.Value]:
    values: list[ir.Value] = []
    for graph in (model.graph, *model.graph.subgraphs()):
        values += [*graph.inputs, *graph.initializers.values()]
    return values + [value for node in model.graph.all_nodes() for value in node.outputs]
