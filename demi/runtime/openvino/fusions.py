"""The kernels that OpenVINO makes of a model: each computes one or several of its nodes, and rounds only what leaves it."""

from __future__ import annotations

import logging
from typing import Any

from demi.runtime.openvino.session import require_openvino

log = logging.getLogger("demi.runtime")


def executed_nodes(model: bytes) -> tuple[tuple[str, ...], ...]:
    """Return the names of the nodes that each kernel computes, for an ONNX model that is compiled in FP32.

    A CPU without half units shows these, too. OpenVINO replaces whole patterns, such as the nodes of a Gelu, by operators
    of its own: of those only the last node is named, if at all. A model that OpenVINO does not take has none. Raises
    PackageError without OpenVINO.
    """
    openvino = require_openvino()
    core = openvino.Core()
    try:
        compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        log.info("OpenVINO does not take the model, so no node is taken to be fused: %s", error)
        return ()
    return tuple(_names(operation) for operation in compiled.get_runtime_model().get_ordered_ops())


def _names(operation: Any) -> tuple[str, ...]:
    info = operation.get_rt_info()
    try:
        named = info["originalLayersNames"]
    except (KeyError, RuntimeError):
        return ()
    text = str(named.astype(str)) if hasattr(named, "astype") else str(named)
    return tuple(name for name in text.split(",") if name)
