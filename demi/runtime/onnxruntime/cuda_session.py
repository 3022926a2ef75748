"""Sessions of ONNX Runtime on a GPU: the checks before opening one, and its binder. `ort` is the onnxruntime module."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any

from demi.errors import DeviceError, PackageError
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.capability import check_gpu
from demi.runtime.onnxruntime.binding import Bindable, Binder
from demi.runtime.onnxruntime.cuda_graphs import GraphBinder
from demi.runtime.onnxruntime.termination import Runs
from demi.runtime.options import SessionSettings
from demi.tensors import TensorSpec

log = logging.getLogger("demi.runtime")

GRAPHS_SINCE = (1, 31)
"""The first ONNX Runtime whose CUDA graphs replay correctly. In older versions, kernels of Concat, Split, GatherND, ScatterND
and batched products copy from host memory during capture, so that a replay reads what a run of other shapes left there
(microsoft/onnxruntime#32120 and #32121), with wrong results or a lost GPU."""


def require_gpu(ort: Any, device: Device) -> Cuda | None:
    """Check the build, the driver and the GPU, load CUDA's libraries, and return the GPU. Raises DeviceError.

    Returns None without CUDA's Python bindings: the provider then reports problems, and tensors cannot be bound.
    """
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise DeviceError(
            f"`{device}` was requested, but the installed ONNX Runtime is built without CUDA",
            hint="pip uninstall -y onnxruntime && pip install 'demi-inference[gpu]'; or use --device cpu",
        )
    try:
        cuda: Cuda | None = Cuda(device)
    except PackageError as error:
        log.warning("inputs are copied inside each run: %s (%s)", error.message, error.hint)
        cuda = None
    if cuda is not None:
        check_gpu(cuda.describe(), device)
    if hasattr(ort, "preload_dlls"):
        # The provider has no path to the CUDA libraries that pip installs; preloading finds them. It prints missing ones
        # to stdout, which is reserved for results.
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()
    return cuda


def can_replay_right(ort: Any) -> bool:
    """Return whether this ONNX Runtime replays CUDA graphs correctly; a warning is logged where it does not."""
    if tuple(int(part) for part in str(ort.__version__).split(".")[:2]) >= GRAPHS_SINCE:
        return True
    log.warning("no CUDA graphs: ONNX Runtime %s replays some kernels wrong; install 1.31 or newer", ort.__version__)
    return False


def make_binder(
    ort: Any,
    session: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    cuda: Cuda,
    settings: SessionSettings,
    runs: Runs,
) -> Binder | GraphBinder:
    """Return the binder for a session, with CUDA graphs if the settings ask for them."""

    def run_options(graph: str) -> Any:
        options = ort.RunOptions()
        if settings.graph_rows:
            options.add_run_config_entry("gpu_graph_id", graph)
        return options

    bindable = Bindable(session, inputs, outputs, run_options, (cuda.device.kind, cuda.device.index), runs)
    return GraphBinder(bindable, cuda, settings.graph_rows) if settings.graph_rows else Binder(bindable, cuda)


def no_cuda(device: Device, cause: str) -> DeviceError:
    """Return the error for a CUDA provider that cannot be used."""
    return DeviceError(
        f"`{device}` cannot be used: {cause}",
        hint="check `nvidia-smi` (driver r580 or newer for CUDA 13) and install 'demi-inference[gpu]'; or use --device cpu",
    )
