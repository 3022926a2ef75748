"""The optimizer of ONNX Runtime that a session goes without, so that opening a model does not end the process.

MatmulTransposeFusion takes a Transpose into the MatMul that reads it. Where a Cast stands between the two, it swaps Cast
and Transpose, and the new Cast has no schema yet. NchwcTransformer comes next and reads the schema of every node on the
CPU: a null pointer (ONNX Runtime 1.24 to 1.32 on x86, microsoft/onnxruntime#28392). It takes a Transpose that moves the first axis,
such as (1, 0, 2), a Cast to a float type, and a MatMul; in FP16 the runtime puts the Cast there itself, so that the last
layer behind nearly every LSTM and GRU that PyTorch writes is such a place.

Either of them alone is safe. Each is worth something, to different models:

| left out | what it costs |
| --- | --- |
| NchwcTransformer | Conv on the CPU takes up to twice as long; nothing in models without Conv, or on a GPU |
| MatmulTransposeFusion | a step of a decoder transposes its keys: that product takes four times as long |
"""

from __future__ import annotations

from pathlib import Path

from demi.onnx_file.protobuf import GRAPH, NODE, fields, view
from demi.runtime.base import Device

NCHWC = "NchwcTransformer"
TRANSPOSED_MATMUL = "MatmulTransposeFusion"

CONVOLUTION = b'"\x04Conv'
"""How a node of the operator Conv says so in a serialized model: field 4 of NodeProto, four letters."""


def left_out(model: Path | bytes, device: Device) -> set[str]:
    """The optimizers that a session for this model goes without: of the two, the one that is worth less to it."""
    return {TRANSPOSED_MATMUL} if device.kind == "cpu" and has_convolution(model) else {NCHWC}


def has_convolution(model: Path | bytes) -> bool:
    """Whether a node of the model's graph, or within one, is a Conv; False where the bytes are no model."""
    try:
        graphs = fields(view(model), GRAPH)
        return any(CONVOLUTION in bytes(node) for graph in graphs for node in fields(graph, NODE))
    except (OSError, ValueError, IndexError):  # no file, or no model: the runtime has better words for it
        return False
