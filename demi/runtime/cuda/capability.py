"""What a GPU and its driver can do: clear errors before a runtime fails, and plain words where half does not pay."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection
from typing import Any

from demi.errors import DeviceError
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Gpu

HALF_ARITHMETIC = (5, 3)
"""The first compute capability that adds and multiplies in FP16."""
MATRIX_UNITS = (7, 0)
"""The first with tensor cores, which is where half is fast."""
OLDEST_OF_CUDA_13 = (7, 5)
BFLOAT16 = (8, 0)
CUDA = (13, 0)
"""What the packages of the `gpu` extra are built for."""

LIBRARIES: tuple[tuple[str, str], ...] = (
    ("libcuda.so.1", "the NVIDIA driver"),
    ("libcudart.so.13", "nvidia-cuda-runtime"),
    ("libcublasLt.so.13", "nvidia-cublas"),
    ("libcublas.so.13", "nvidia-cublas"),
    ("libcurand.so.10", "nvidia-curand"),
    ("libcufft.so.12", "nvidia-cufft"),
    ("libcudnn.so.9", "nvidia-cudnn-cu13"),
)
"""What ONNX Runtime's CUDA provider loads, and what brings it. cuDNN and cuFFT come late: Conv fails without them."""

CUDNN = "libcudnn.so.9"
NEED_CUDNN = frozenset({"Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv", "LSTM", "GRU", "RNN"})
"""Operators that ONNX Runtime's CUDA provider leaves to cuDNN: it makes the session without, and fails at the first run."""


def check_gpu(gpu: Gpu, device: Device) -> None:
    """Raise DeviceError unless this GPU and its driver can run half precision through CUDA 13."""
    if gpu.driver_cuda < CUDA:
        raise DeviceError(
            f"`{device}` cannot be used: its driver serves CUDA {_dotted(gpu.driver_cuda)}, and CUDA {_dotted(CUDA)} is needed",
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
    """Why half will not be faster on this machine, in a sentence; None where it should be. Only timing tells."""
    if gpu is None:
        return (
            f"no GPU was found here, and on a CPU {precision} saves memory but no time: it is converted at every node"
        )
    if gpu.capability < MATRIX_UNITS:
        return f"{gpu.name} (compute capability {_dotted(gpu.capability)}) has no matrix units for half: {precision} saves memory, and hardly time"
    if precision == "bf16" and gpu.capability < BFLOAT16:
        return f"{gpu.name} (compute capability {_dotted(gpu.capability)}) has no bfloat16 arithmetic: use --fp16 there"
    return None


def missing_libraries(load: Callable[[str], Any] = ctypes.CDLL) -> list[str]:
    """The libraries that the CUDA provider needs and this process cannot load, each with what brings it."""
    return [f"{name} ({source})" for name, source in LIBRARIES if not _loads(load, name)]


def lacks_cudnn(operators: Collection[str], load: Callable[[str], Any] = ctypes.CDLL) -> bool:
    """Whether these operators need cuDNN, and this process cannot load it."""
    return not NEED_CUDNN.isdisjoint(operators) and not _loads(load, CUDNN)


def _loads(load: Callable[[str], Any], name: str) -> bool:
    try:
        load(name)
    except OSError:
        return False
    return True


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
