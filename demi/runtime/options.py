"""How a session is made, and what that means in ONNX Runtime's options for CUDA."""

from __future__ import annotations

from dataclasses import dataclass

from demi.runtime.base import Device


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session is made.

    `faithful` keeps every rounding that the graph spells out: ONNX Runtime's basic optimizations only, since fusions
    and layout changes alter the order of summation. `threads` 0 means one per core. `spin` lets idle threads spin,
    which is a little faster for one request and burns a core for an idle server.
    """

    threads: int = 0
    spin: bool = False
    faithful: bool = False
    strict_device: bool = False
    """Any node on the CPU beside the GPU is an error, but for those that compute with nothing but shapes."""
    memory_bytes: int = 0
    """Most device memory that ONNX Runtime's arena may hold; 0 is all there is."""
    graph_rows: int = 0
    """Record CUDA graphs for batches of up to so many rows; 0 records none."""
    nhwc: bool = False
    """Convolutions with channels last, as the matrix units of a GPU read them: faster or slower, by the model."""
    profile: str = ""
    """Write the time of every node to a file whose name starts so; empty writes none."""


FAITHFUL = SessionSettings(faithful=True)
"""The settings of every session that measures or proves something."""


def cuda_options(device: Device, settings: SessionSettings) -> dict[str, str]:
    """The options of ONNX Runtime's CUDA provider: each a string, and each with its why."""
    options = {
        "device_id": str(device.index),
        # TF32 keeps 10 bits of fraction, as few as half: the nodes a plan keeps in FP32 need real FP32.
        "use_tf32": "0",
        # The default searches anew for every shape, and batches have many.
        "cudnn_conv_algo_search": "HEURISTIC",
        # ONNX Runtime before 1.27 summed SkipLayerNormalization's variance in half.
        "enable_skip_layer_norm_strict_mode": "1",
    }
    if settings.nhwc:
        options["prefer_nhwc"] = "1"
    if settings.graph_rows:
        options["enable_cuda_graph"] = "1"
    if settings.memory_bytes:
        # Doubling, the default, would ask for up to twice what is needed and hit the limit early.
        options |= {"gpu_mem_limit": str(settings.memory_bytes), "arena_extend_strategy": "kSameAsRequested"}
    return options
