"""Types that ONNX's inference leaves open behind operators of domains without schemas.

Some follow from the schemas of neighbouring operators (`passes.schema_types`); for the others ONNX Runtime is asked.
"""

from __future__ import annotations

import logging

import onnx_ir as ir

from demi.calibration.sessions import session_for
from demi.errors import TensorError
from demi.exporter.passes.schema_types import SchemaTypes
from demi.runtime.onnxruntime.first_open import open_tried
from demi.runtime.options import FAITHFUL

logger = logging.getLogger(__name__)


def fill_types(model: ir.Model) -> bool:
    """Give untyped tensors of the main graph the type that schemas or ONNX Runtime infer; return whether anything
    changed.

    Before: the model went through `prepare`. After: its standard operators behind `com.microsoft` ones, say, can be
    half. Public outputs, subgraphs and what the model computes are unchanged.
    """
    modified = SchemaTypes()(model).modified
    made = [value for node in model.graph for value in node.outputs if value.uses() and not value.is_graph_output()]
    untyped = {value.name: value for value in made if value.type is None}
    if not untyped:
        return modified
    asking = model.clone()
    asking.graph.outputs.extend(
        value for node in asking.graph for value in node.outputs if value.name in untyped and value.uses()
    )
    try:
        with session_for(asking, settings=FAITHFUL, opener=open_tried) as session:
            found = {spec.name: ir.TensorType(ir.DataType(spec.dtype.onnx)) for spec in session.outputs}
    except TensorError as error:  # a sequence, or a type that no session returns: nothing changes
        logger.info("types behind custom operators stay unknown: %s", error)
        return modified
    for name, value in untyped.items():
        value.type = found[name or ""]
    return True
