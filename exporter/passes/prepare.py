"""Prepare: make any valid graph easy to rewrite, without changing what it computes."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.errors import ConversionError


def prepare(model: ir.Model) -> ir.Model:
    """A copy of `model`, ready for planning and lowering; tensors are shared, not copied.

    After it: no local functions and no Constant nodes (except those that are graph outputs), every node and value has
    a name that is unique in the whole model, nodes are sorted, and types are inferred wherever ONNX can infer them.
    Public names, order, types and shapes of inputs and outputs are as before. Raises ConversionError when a node's
    output type cannot be told though it might be float.
    """
    prepared = model.clone()
    for step in (
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.TopologicalSortPass(),
        common.NameFixPass(),
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True),
    ):
        try:
            prepared = step(prepared).model
        except Exception as error:
            raise ConversionError(
                f"the graph cannot be prepared ({type(step).__name__}): {error}",
                hint="check the model with onnx.checker.check_model",
            ) from error
    name_free_axes(prepared)
    return prepared


def name_free_axes(model: ir.Model) -> None:
    """Give every unnamed free axis of the inputs a name, so that two requests' shapes can be told apart."""
    for value in model.graph.inputs:
        if value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, ir.SymbolicDim) and dim.value is None:
                value.shape[axis] = f"{value.name}_axis{axis}"
