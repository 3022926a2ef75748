"""What a failed run means for the GPU: after some errors of CUDA every later call of the process fails with the same one;
others are want of memory."""

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
"""The values of `cudaError_t` that destroy the context: illegal addresses and instructions, asserts, timeouts of kernels,
and launches that failed, as the CUDA runtime's documentation says of each."""

STICKY = frozenset(NAMES)

HINT = "start the server again; where it happens again, look for the request by its id in the log"

ROOM_HINT = "serve smaller batches (--max-batch), fewer models, or limit them with --device-memory"

_NO_ROOM = re.compile(
    r"failure 2: out of memory|ALLOC_FAILED|Failed to allocate memory for requested buffer|Available memory of"
)
"""How ONNX Runtime tells that there is none left: CUDA's words, those of its libraries, and those of its own arena."""

_FAILURE = re.compile(r"CUDA (?:failure (\d+)|error (cudaError\w+))")
"""How ONNX Runtime tells CUDA's error: by its number where a call fails, by its name where it looks after a kernel."""


def failed_run(text: str) -> InferenceError:
    """The error of a run that a runtime ended with these words: DeviceLostError where they tell that the GPU is lost."""
    match = _FAILURE.search(text)
    is_lost = match is not None and (match[2] in NAMES.values() or int(match[1] or 0) in NAMES)
    return (
        DeviceLostError(text, hint=HINT)
        if is_lost
        else InferenceError(text, hint=ROOM_HINT if lacks_room(text) else None)
    )


def lacks_room(text: str) -> bool:
    """Whether a runtime says with these words that no memory is left."""
    return _NO_ROOM.search(text) is not None


_STATUS = "Status Message:"


def first_line(error: Exception) -> str:
    """A runtime's words in one line: the first, and what went wrong where a node's own name broke the line before it."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    if _STATUS in text and _STATUS not in line:
        line = f"{line} {text[text.rindex(_STATUS) :].splitlines()[0]}"
    return line.replace("[ONNXRuntimeError] : ", "")
