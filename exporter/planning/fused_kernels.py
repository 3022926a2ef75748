"""The kernels of a device that compute several nodes: tensors inside one are never stored, and so never rounded.

The emulator rounds every half tensor, as a device does that runs node by node. OpenVINO computes a product with its bias,
activation and residual in one kernel, in FP32, and rounds once at its end; a plan for it need not pay for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from demi.exporter.operators import schemas

Fusing = Callable[[ir.Model], Mapping[str, str]]
"""Returns the kernel of each node that shares one, for a prepared model."""


def fused_by_openvino(model: ir.Model) -> dict[str, str]:
    """Return the kernel of each node that shares one in OpenVINO. Raises PackageError without OpenVINO."""
    from demi.runtime.openvino.fusions import executed_nodes

    return shared_kernels(model, executed_nodes(ir.to_proto(model).SerializeToString()))


def shared_kernels(model: ir.Model, executed: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the kernel of each node of the main graph that shares one, named after the first node of `executed`.

    A node that no kernel names is part of a pattern that the runtime replaced: it is in the kernel of all its readers if
    they share one. OpenVINO gives a node that makes an output of the model the name of that output.
    """
    nodes = [node for node in model.graph if schemas.touches_float(node)]
    named = {value.name: node.name or "" for node in nodes for value in node.outputs if value.is_graph_output()}
    named |= {node.name: node.name or "" for node in nodes}
    kernel: dict[str, str] = {}
    for names in executed:
        own = [named[name] for name in names if name in named]
        kernel.update(dict.fromkeys(own, own[0] if own else ""))
    for node in reversed(nodes):
        if node.name not in kernel and (shared := _kernel_of_readers(node, kernel)):
            kernel[node.name or ""] = shared
    often = Counter(kernel.values())
    return {name: each for name, each in kernel.items() if often[each] > 1}


def _kernel_of_readers(node: ir.Node, kernel: Mapping[str, str]) -> str | None:
    """Return the one kernel that reads all of a node's results; None if there are others, or an output of the model."""
    if any(value.is_graph_output() for value in node.outputs):
        return None
    found = {kernel.get(use.node.name or "") for value in node.outputs for use in value.uses()}
    return found.pop() if len(found) == 1 else None
