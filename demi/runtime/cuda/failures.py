"""Classify CUDA failures: fatal (the process must restart), out of memory, or neither."""

from __future__ import annotations

import re

from demi.errors import DeviceLostError, InferenceError

NAMES = {
    700: "cudaErrorIllegalAddress",
    702: "cudaErrorLaunchTimeout",
    709: "cudaErrorContextIsDestroyed",
    710: "cudaErrorAssert",
    714: "cudaErrorHardwareStackError",
    715: "cudaErrorIllegalInstruction",
    716: "cudaErrorMisalignedAddress",
    717: "cudaErrorInvalidAddressSpace",
    718: "cudaErrorInvalidPc",
    719: "cudaErrorLaunchFailure",
}
"""Values of `cudaError_t` that destroy the context, by the CUDA runtime's documentation: illegal addresses and
instructions, asserts, kernel timeouts and failed launches. All later CUDA calls of the process fail with the same error."""

STICKY = frozenset(NAMES)

DEVICE_LOST_HINT = "restart the server; if it happens again, find the request in the log by its id"

OUT_OF_MEMORY_HINT = "serve smaller batches (--max-batch), fewer models, or limit them with --device-memory"

_OUT_OF_MEMORY = re.compile(
    r"failure 2: out of memory|ALLOC_FAILED|Failed to allocate memory for requested buffer|Available memory of"
)
"""ONNX Runtime's messages for exhausted device memory: from CUDA, from CUDA's libraries, and from its own arena."""

_FAILURE = re.compile(r"CUDA (?:failure (\d+)|error (cudaError\w+))")
"""ONNX Runtime's messages for CUDA errors: with the number for a failed call, with the name for a failed kernel."""


def run_failure(text: str) -> InferenceError:
    """Return the error for a failed run from the runtime's message: DeviceLostError when it names a fatal CUDA error."""
    match = _FAILURE.search(text)
    is_lost = match is not None and (match[2] in NAMES.values() or int(match[1] or 0) in NAMES)
    return (
        DeviceLostError(text, hint=DEVICE_LOST_HINT)
        if is_lost
        else InferenceError(text, hint=OUT_OF_MEMORY_HINT if is_out_of_memory(text) else None)
    )


def is_out_of_memory(text: str) -> bool:
    """Return whether a runtime's message reports exhausted device memory."""
    return _OUT_OF_MEMORY.search(text) is not None


_STATUS = "Status Message:"


def first_line(error: Exception) -> str:
    """Return a runtime's message as one line: its first, with the status message if a node name with a line break cut it off."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    if _STATUS in text and _STATUS not in line:
        line = f"{line} {text[text.rindex(_STATUS) :].splitlines()[0]}"
    return line.replace("[ONNXRuntimeError] : ", "")
