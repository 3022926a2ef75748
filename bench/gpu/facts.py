"""The machine: the card, its driver, and the versions of what runs on it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from functools import partial

from bench.gpu.setup import Row, Setup, attempt

PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "onnx", "onnxscript", "tensorrt", "transformers", "numpy")
ASKED = ("name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm", "clocks.max.memory", "power.limit")


def rows(setup: Setup) -> Iterator[Row]:
    """Yield one property a row."""
    yield {"what": "processor", "is": f"{platform.machine()}, Python {platform.python_version()}"}
    for package in PACKAGES:
        yield {"what": package, "is": version(package)}
    yield attempt(providers, what="ONNX Runtime's providers")
    if setup.is_cuda:
        for name in ASKED:
            yield attempt(partial(asked, name), what=name)
        yield attempt(cuda, what="CUDA, as PyTorch sees it")


def version(package: str) -> str:
    """Return the version of a package, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def providers() -> Row:
    """Return the execution providers that ONNX Runtime is built with; not all of them need work here."""
    import onnxruntime

    return {"is": ", ".join(onnxruntime.get_available_providers())}


def asked(name: str) -> Row:
    """Query nvidia-smi for one property."""
    command = ["nvidia-smi", f"--query-gpu={name}", "--format=csv,noheader", "--id=0"]
    return {"is": subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()}


def cuda() -> Row:
    """Return the versions of CUDA and cuDNN, and the size of the card."""
    import torch

    card = torch.cuda.get_device_properties(0)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {"is": f"CUDA {torch.version.cuda}, cuDNN {cudnn}, {card.multi_processor_count} multiprocessors"}
