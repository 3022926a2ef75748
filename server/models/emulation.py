"""Emulated half precision (`--emulate`): on a CPU, the answers that a GPU would give, with its roundings and overflows.

A bundle's half model becomes one that computes in FP32 and rounds through half wherever a GPU stores half. Another process
writes that model, because this one has no onnx package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from demi.bundles.bundle import Bundle
from demi.bundles.drafts import scratch
from demi.errors import BundleError, DeviceError, missing_package
from demi.processes.trial_process import TrialProcess
from demi.server.models.computed import EMULATED
from demi.server.models.cpu_choice import Choice
from demi.server.settings import ServeSettings

log = logging.getLogger("demi.server")

WORK = "demi.calibration.emulation.emulated_file:write_emulated"
ERROR = ".error"
NEEDED = "onnx_ir"


def emulated_choice(bundle: Bundle, settings: ServeSettings) -> Choice:
    """Return the choice of the emulated half model. Raises DeviceError if the settings ask for something else as well."""
    if settings.device.kind != "cpu":
        raise DeviceError(
            "--emulate: a GPU computes in half itself", hint="leave out --emulate, or serve with --device cpu"
        )
    if settings.runtime == "openvino":
        raise DeviceError("--emulate: the emulator runs in ONNX Runtime", hint="leave --runtime out")
    precision = bundle.manifest.precision
    note = f"{precision} is emulated: every tensor that a GPU stores in {precision} is rounded, and computed in FP32"
    log.info("%s: %s", bundle.manifest.name, note)
    return Choice(bundle.model_path, f"{precision}{EMULATED}", note=note)


@contextlib.contextmanager
def emulated(choice: Choice, settings: ServeSettings) -> Iterator[Choice]:
    """Yield the choice with the path of the emulator's model, which is removed after the block.

    Raises PackageError without onnx_ir, CrashError if the process that writes the model crashes, and BundleError if it
    cannot be written.
    """
    if importlib.util.find_spec(NEEDED) is None:
        raise missing_package(NEEDED, "export")
    with scratch() as folder, TrialProcess(WORK, settings.load_timeout_s, "--load-timeout") as process:
        target = folder / "model.onnx"
        process.call(choice.path, target)
        if not target.is_file():
            raise BundleError(f"the half model cannot be emulated: {_reason(target)}", where=str(choice.path))
        yield replace(choice, path=target)


def _reason(target: Path) -> str:
    try:
        return target.with_name(target.name + ERROR).read_text()
    except OSError:
        return "the process that writes the emulator's model gave no result"
