"""Settings of a session, and the options of ONNX Runtime's CUDA provider that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from demi.runtime.base import Device

RuntimeChoice = Literal["auto", "onnxruntime", "openvino"]
"""Runtime of a model on a CPU, as in `--runtime`."""
RUNTIMES: tuple[RuntimeChoice, ...] = ("auto", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Settings of a session.

    `faithful` keeps every rounding in the graph: only ONNX Runtime's basic optimizations are applied, since fusions and
    layout changes alter the order of summation. `threads` 0 means one per core. `spin` lets idle threads spin, which is
    a little faster for a single request but keeps a core busy on an idle server.
    """

    threads: int = 0
    spin: bool = False
    faithful: bool = False
    as_written: bool = False
    """Node by node as the graph has it, with no optimization at all: fusions of normalizations are basic ones."""
    strict_device: bool = False
    """Treat nodes that a GPU session runs on the CPU as an error, except those that compute with shapes only."""
    memory_bytes: int = 0
    """Most bytes of device memory for ONNX Runtime's arena; 0 sets no limit."""
    graph_rows: int = 0
    """Use CUDA graphs for batches of up to so many rows; 0 uses none."""
    nhwc: bool = False
    """Run convolutions with channels last, the layout of tensor cores: faster or slower, depending on the model."""
    profile: str = ""
    """Prefix of a file to which the time of every node is written; empty for no profile."""


FAITHFUL = SessionSettings(faithful=True)
"""The settings of every session that measures or proves something."""


def cuda_options(device: Device, settings: SessionSettings) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA provider."""
    options = {
        "device_id": str(device.index),
        # TF32 has 10 fraction bits, like half: nodes that a plan keeps in FP32 need real FP32.
        "use_tf32": "0",
        # The default searches anew for every shape, and batches have many shapes.
        "cudnn_conv_algo_search": "HEURISTIC",
        # ONNX Runtime before 1.27 sums SkipLayerNormalization's variance in half.
        "enable_skip_layer_norm_strict_mode": "1",
    }
    if settings.nhwc:
        options["prefer_nhwc"] = "1"
    if settings.graph_rows:
        options["enable_cuda_graph"] = "1"
    if settings.memory_bytes:
        # The default doubles each request, asks for up to twice what is needed, and reaches the limit early.
        options |= {"gpu_mem_limit": str(settings.memory_bytes), "arena_extend_strategy": "kSameAsRequested"}
    return options
