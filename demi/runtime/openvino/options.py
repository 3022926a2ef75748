"""Options of OpenVINO, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Hint = Literal["f32", "f16", "bf16", "dynamic"]
"""In which precision OpenVINO computes: `dynamic` takes the types that the model has, node by node, and the others are
one precision for the whole model, with exceptions of OpenVINO's own choice."""

HINTS: dict[str, Hint] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
"""The hint for a whole model in one of Demi's precisions."""


@dataclass(frozen=True, slots=True)
class OvSettings:
    """Settings with which a model is compiled.

    `hint` has no default that a caller could forget: without one OpenVINO takes BF16 wherever the CPU has it, so that an
    FP32 model answers differently on different machines. `streams` are batches that run at the same time, which share the
    `threads`; 0 threads are one for each core.
    """

    hint: Hint
    threads: int = 0
    streams: int = 1
    profile: bool = False
    """Note the time of every layer, which costs some."""


def cpu_options(settings: OvSettings) -> dict[str, str]:
    """OpenVINO's properties for its CPU plugin: each a string, and each with its why."""
    options = {
        # Never unset: see OvSettings.
        "INFERENCE_PRECISION_HINT": settings.hint,
        # A stream is a batch under way. Left to itself OpenVINO chooses by the machine, not by how many lanes there are.
        "NUM_STREAMS": str(settings.streams),
        # A pinned thread waits for its core while another process computes there, though the next core is idle.
        "ENABLE_CPU_PINNING": "NO",
        # Matrix products of compressed weights would otherwise round their inputs to 8 bits.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        # Keys and values of attention as they are, and not in 8 bits.
        "KV_CACHE_PRECISION": "f16" if settings.hint == "f16" else "bf16" if settings.hint == "bf16" else "f32",
    }
    if settings.threads:
        options["INFERENCE_NUM_THREADS"] = str(settings.threads)
    if settings.profile:
        options["PERF_COUNT"] = "YES"
    return options
