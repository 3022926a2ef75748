"""The precision that a model is computed in, as answers and metadata name it, and what comparing it with FP32 shows.

`fp32`, `fp16` and `bf16` mean that every such node was computed so. The others name a half model that a CPU computes.
"""

from __future__ import annotations

EMULATED = "-emulated"
"""Appended to the precision of emulated answers: `fp16-emulated`."""

IN_FP32 = "-in-fp32"
"""Appended to the precision of a half model whose nodes a CPU computes in FP32: `fp16-in-fp32`."""


def vouches_for(precision: str, device: str, runtime: str) -> str:
    """Return what a comparison of these answers with FP32 shows about half precision, and what it cannot show."""
    if precision == "fp32":
        return "nothing: FP32 serves, so no half answer is compared"
    if precision.endswith(EMULATED):
        return (
            "a GPU's roundings and overflows of every tensor that it stores in half; not half accumulation inside a "
            "kernel, nor fusions that skip a rounding"
        )
    if precision.endswith(IN_FP32):
        return (
            "half weights only: this CPU computes half nodes in FP32, where values do not overflow and most roundings are "
            "missing, so a GPU's answers may differ; serve with --emulate to see them"
        )
    if device == "cpu":
        return f"this CPU's own half in {runtime}; a GPU rounds at other places"
    return f"this device's own answers ({device})"
