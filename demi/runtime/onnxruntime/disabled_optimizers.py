"""Optimizers of ONNX Runtime that Demi disables, because two of them together crash the process.

MatmulTransposeFusion fuses a Transpose into the MatMul that reads it. With a Cast between the two, it swaps Cast and
Transpose, and the new Cast has no schema yet. NchwcTransformer, which runs next, reads the schema of every node on the
CPU: a null pointer (ONNX Runtime 1.24 to 1.32 on x86, microsoft/onnxruntime#28392). The pattern is a Transpose that
moves the first axis, such as (1, 0, 2), a Cast to a float type, and a MatMul. In FP16 the runtime inserts the Cast
itself, so the layer behind almost every LSTM and GRU that PyTorch exports matches.

Each of the two alone is safe, so the one that is worth less to the model is disabled:

| disabled | cost |
| --- | --- |
| NchwcTransformer | Conv on the CPU takes up to twice as long; none for models without Conv, or on a GPU |
| MatmulTransposeFusion | each step of a decoder transposes its keys: that product takes four times as long |
"""

from __future__ import annotations

from pathlib import Path

from demi.onnx_file.protobuf import GRAPH, NODE, fields, view
from demi.runtime.base import Device

NCHWC = "NchwcTransformer"
TRANSPOSED_MATMUL = "MatmulTransposeFusion"

CONVOLUTION = b'"\x04Conv'
"""The operator Conv in a serialized node: field 4 of NodeProto, of length four."""


def disabled_optimizers(model: Path | bytes, device: Device) -> set[str]:
    """Return the optimizer to disable for this model: of the two, the one that is worth less to it."""
    return {TRANSPOSED_MATMUL} if device.kind == "cpu" and has_convolution(model) else {NCHWC}


def has_convolution(model: Path | bytes) -> bool:
    """Return whether the model has a Conv at any depth; False where the bytes are not a model."""
    try:
        graphs = fields(view(model), GRAPH)
        return any(CONVOLUTION in bytes(node) for graph in graphs for node in fields(graph, NODE))
    except (OSError, ValueError, IndexError):  # not a file, or not a model: the runtime's error is better
        return False
