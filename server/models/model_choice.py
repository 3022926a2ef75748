"""Choice of the model to serve: half or FP32, by device, settings and proof, and FP32 in place of one that fails."""

from __future__ import annotations

import logging

from demi.bundles.bundle import Bundle
from demi.errors import DeviceError, InferenceError
from demi.runtime.base import Device
from demi.server.models.cpu_choice import Choice, Prove, choose_on_cpu
from demi.server.models.emulation import emulated_choice
from demi.server.settings import ServeSettings

log = logging.getLogger("demi.server")


def choose_model(bundle: Bundle, settings: ServeSettings, prove: Prove) -> Choice:
    """Return the half model on a GPU, and on a CPU the model that pays there (`demi.server.models.cpu_choice`).

    Raises DeviceError if the settings require what is not available.
    """
    if settings.emulate:
        return emulated_choice(bundle, settings)
    if settings.device.kind == "cpu":
        return choose_on_cpu(bundle, settings, prove)
    if settings.runtime == "openvino":
        raise DeviceError("--runtime openvino: OpenVINO runs on a CPU here", hint="leave --device out, or use auto")
    return Choice(bundle.model_path, bundle.manifest.precision)


def fall_back(bundle: Bundle, choice: Choice, device: Device, error: InferenceError) -> Choice:
    """Return the FP32 reference in place of a half model that fails on its own inputs on a CPU, or raise `error`.

    Some of ONNX Runtime's CPU kernels load in half precision and fail when they run, such as scatters that add.
    """
    if device.kind != "cpu" or choice.precision == "fp32" or bundle.reference_path is None:
        raise error
    log.warning(
        "%s: its half model cannot run on this CPU (%s); serving its FP32 reference instead",
        bundle.manifest.name,
        error.message,
    )
    note = f"the FP32 reference serves: the half model cannot run on this CPU ({error.message})"
    return Choice(bundle.reference_path, "fp32", note=note)
