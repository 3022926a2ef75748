"""GPUs that have failed for good: after some errors of CUDA every later call of the process fails with the same one."""

from __future__ import annotations

import re

from demi.errors import DeviceLostError, InferenceError

STICKY = frozenset({700, 702, 709, 710, 714, 715, 716, 717, 718, 719})
"""Codes of `cudaError_t` that destroy the context: illegal addresses and instructions, asserts, timeouts of kernels, and
launches that failed, as the CUDA runtime's documentation says of each."""

HINT = "start the server again; where it happens again, look for the request by its id in the log"

_FAILURE = re.compile(r"CUDA failure (\d+)")
"""How ONNX Runtime tells CUDA's error."""


def failed_run(text: str) -> InferenceError:
    """The error of a run that a runtime ended with these words: DeviceLostError where they tell that the GPU is lost."""
    match = _FAILURE.search(text)
    return DeviceLostError(text, hint=HINT) if match and int(match[1]) in STICKY else InferenceError(text)
