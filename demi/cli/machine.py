"""This machine: its CPU, its GPU, and the runtimes that are installed."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from demi.errors import DemiError, PackageError


@dataclass(frozen=True, slots=True)
class Part:
    """One row about the machine: what it is, what was found, and a remark."""

    name: str
    found: str
    remark: str = ""
    is_there: bool = True


def parts() -> list[Part]:
    """Return everything about this machine that matters for half precision."""
    return [python(), cpu(), gpu(), onnx_runtime(), openvino(), tensorrt()]


def python() -> Part:
    """Return Python and the system."""
    return Part("Python", platform.python_version(), f"{platform.system()} {platform.machine()}, {sys.executable}")


def cpu() -> Part:
    """Return the CPU, its half-precision units, and the reason if half is not faster on it."""
    from demi.runtime.cores import usable_cores
    from demi.runtime.openvino.capability import read_cpu

    found = read_cpu()
    cores = usable_cores()
    units = ", ".join(found.half_units()) or "no half-precision units"
    matrix = [precision for precision in ("fp16", "bf16") if found.multiplies(precision)]
    remark = (
        f"matrix units for {' and '.join(matrix)}"
        if matrix
        else "no matrix units: half saves memory and little time; `demi serve` measures it for each bundle"
    )
    return Part("CPU", found.name, f"{cores} {'core' if cores == 1 else 'cores'}, {units}; {remark}")


def gpu() -> Part:
    """Return the first GPU, or why there is none."""
    from demi.runtime.base import Device
    from demi.runtime.cuda.bindings import Cuda
    from demi.runtime.cuda.capability import check_gpu, missing_libraries, why_not_faster

    device = Device("cuda")
    try:
        found = Cuda(device).describe()
    except PackageError as error:
        return Part("GPU", "unknown", f"CUDA's Python bindings are not installed; {error.hint}", is_there=False)
    except DemiError as error:
        return Part("GPU", "none", error.message, is_there=False)
    capability, cuda = (".".join(map(str, pair)) for pair in (found.capability, found.driver_cuda))
    facts = f"compute capability {capability}, driver for CUDA {cuda}, {found.memory_bytes / 2**30:.0f} GiB"
    try:
        check_gpu(found, device)
    except DemiError as error:
        return Part("GPU", found.name, f"{facts}; {error.message}", is_there=False)
    if missing := missing_libraries():
        return Part("GPU", found.name, f"{facts}; missing: {', '.join(missing)}", is_there=False)
    slow = why_not_faster(found, "fp16") or why_not_faster(found, "bf16")
    return Part("GPU", found.name, f"{facts}; {slow}" if slow else facts)


def onnx_runtime() -> Part:
    """Return ONNX Runtime and its providers, after importing it."""
    from demi.runtime.onnxruntime.session import providers, runtime_version

    try:
        return Part("ONNX Runtime", runtime_version(), ", ".join(providers()))
    except DemiError as error:
        return Part("ONNX Runtime", "none", f"{error.message}; {error.hint}", is_there=False)


def openvino() -> Part:
    """Return OpenVINO and what its CPU plugin computes, after importing it."""
    from demi.runtime.openvino.session import capabilities, openvino_version

    version = openvino_version()
    if version is None:
        remark = "a CPU then serves FP32; pip install 'demi-inference[openvino]'"
        return Part("OpenVINO", "none", remark, is_there=False)
    try:
        return Part("OpenVINO", version, f"its CPU plugin lists {', '.join(capabilities())}")
    except Exception as error:  # a plugin that fails to load may raise anything
        return Part("OpenVINO", version, f"it cannot be used: {str(error).splitlines()[0]}", is_there=False)


def tensorrt() -> Part:
    """Return TensorRT, after importing it."""
    from demi.runtime.tensorrt.session import require_tensorrt

    try:
        return Part("TensorRT", str(require_tensorrt().__version__))
    except DemiError as error:
        return Part("TensorRT", "none", f"for engines on NVIDIA GPUs; {error.hint}", is_there=False)
