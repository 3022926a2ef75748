"""Capabilities of a GPU and its driver: checks before a runtime fails, and notes where half will not be faster."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection
from typing import Any

from demi.errors import DeviceError
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Gpu

HALF_ARITHMETIC = (5, 3)
"""The first compute capability with FP16 arithmetic."""
MATRIX_UNITS = (7, 0)
"""The first compute capability with tensor cores, which make half fast."""
OLDEST_OF_CUDA_13 = (7, 5)
BFLOAT16 = (8, 0)
CUDA = (13, 0)
"""The CUDA version of the packages in the `gpu` extra."""

LIBRARIES: tuple[tuple[str, str], ...] = (
    ("libcuda.so.1", "the NVIDIA driver"),
    ("libcudart.so.13", "nvidia-cuda-runtime"),
    ("libcublasLt.so.13", "nvidia-cublas"),
    ("libcublas.so.13", "nvidia-cublas"),
    ("libcurand.so.10", "nvidia-curand"),
    ("libcufft.so.12", "nvidia-cufft"),
    ("libcudnn.so.9", "nvidia-cudnn-cu13"),
)
"""Libraries of ONNX Runtime's CUDA provider, with the packages that install them. cuDNN and cuFFT are loaded on first use."""

CUDNN = "libcudnn.so.9"
NEED_CUDNN = frozenset({"Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv", "LSTM", "GRU", "RNN"})
"""Operators that ONNX Runtime's CUDA provider runs in cuDNN. Without it, the session opens and its first run fails."""


def check_gpu(gpu: Gpu, device: Device) -> None:
    """Raise DeviceError unless this GPU and its driver can run half precision through CUDA 13."""
    if gpu.driver_cuda < CUDA:
        raise DeviceError(
            f"`{device}` cannot be used: its driver supports CUDA {_dotted(gpu.driver_cuda)}, but CUDA {_dotted(CUDA)} is needed",
            hint="install driver r580 or newer, or use --device cpu",
        )
    if gpu.capability < HALF_ARITHMETIC:
        raise DeviceError(
            f"`{device}` ({gpu.name}, compute capability {_dotted(gpu.capability)}) has no FP16 arithmetic",
            hint=f"use a GPU of compute capability {_dotted(OLDEST_OF_CUDA_13)} or newer, or --device cpu",
        )
    if gpu.capability < OLDEST_OF_CUDA_13:
        raise DeviceError(
            f"`{device}` ({gpu.name}, compute capability {_dotted(gpu.capability)}) is older than CUDA 13 supports",
            hint=f"use a GPU of compute capability {_dotted(OLDEST_OF_CUDA_13)} or newer, or --device cpu",
        )


def why_not_faster(gpu: Gpu | None, precision: str) -> str | None:
    """Return a sentence on why half will not be faster on this machine; None where it should be (measure to be sure)."""
    if gpu is None:
        return f"no GPU was found; on a CPU, {precision} makes the file smaller but is not faster: values are converted at every node"
    if gpu.capability < MATRIX_UNITS:
        return f"{gpu.name} (compute capability {_dotted(gpu.capability)}) has no tensor cores: {precision} saves memory, but hardly any time"
    if precision == "bf16" and gpu.capability < BFLOAT16:
        return f"{gpu.name} (compute capability {_dotted(gpu.capability)}) has no bfloat16 arithmetic: use --fp16"
    return None


def missing_libraries(load: Callable[[str], Any] = ctypes.CDLL) -> list[str]:
    """Return the libraries of the CUDA provider that cannot be loaded, each with the package that installs it."""
    return [f"{name} ({source})" for name, source in LIBRARIES if not _loads(load, name)]


def lacks_cudnn(operators: Collection[str], load: Callable[[str], Any] = ctypes.CDLL) -> bool:
    """Return whether these operators need cuDNN and it cannot be loaded."""
    return not NEED_CUDNN.isdisjoint(operators) and not _loads(load, CUDNN)


def _loads(load: Callable[[str], Any], name: str) -> bool:
    try:
        load(name)
    except OSError:
        return False
    return True


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
