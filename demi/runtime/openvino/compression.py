"""An FP32 model whose weights are stored in FP16.

OpenVINO packs the weights of matrix products in the precision in which it computes, and keeps the model's own beside
them; in FP16 those take half the memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from demi.float16 import FP16


def compress(graph: Any) -> bool:
    """Store the weights of an OpenVINO graph in FP16, in place; False, and nothing done, where a value would be clamped.

    OpenVINO leaves alone constants that are mostly beyond FP16's range, such as a mask's lowest number.
    """
    if not all(_fits(op.data) for op in graph.get_ordered_ops() if _is_float_constant(op)):
        return False
    from openvino._offline_transformations import compress_model_transformation

    compress_model_transformation(graph)
    return True


def _is_float_constant(op: Any) -> bool:
    return op.get_type_name() == "Constant" and op.get_output_element_type(0).get_type_name() == "f32"


def _fits(values: np.typing.NDArray[np.float32]) -> bool:
    """Whether no finite value among several is beyond FP16's range."""
    if values.size == 1:
        return True
    beyond = np.abs(values) > FP16.max
    return not bool(np.any(beyond & np.isfinite(values)))
