"""Inputs and outputs of a graph as specs."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from demi.tensors import DType, TensorSpec


def graph_specs(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """Return the specs of a graph's inputs or outputs; TensorError for one that is not a tensor."""
    specs = []
    for value in values:
        kind = ir.DataType.UNDEFINED if not isinstance(value.type, ir.TensorType) else value.type.dtype
        dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape or ()]
        specs.append(
            TensorSpec(value.name or "", DType.from_onnx(int(kind)), tuple("" if dim is None else dim for dim in dims))
        )
    return tuple(specs)
