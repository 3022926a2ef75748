"""The emulator's model as an ONNX file, for servers that have no onnx package and start a process that writes it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from demi.calibration.emulation.widen import widen
from demi.calibration.sessions import save_model
from demi.errors import DemiError

ERROR = ".error"
"""Suffix of the file that is written in place of the model if there is none."""


def write_emulated(mixed: Path, target: Path) -> None:
    """Write the emulator's model of the half model `mixed` to `target`, or the reason why not to `target` + `.error`.

    The file computes in FP32, and rounds through half wherever a GPU stores half (`demi.calibration.emulation.widen`).
    """
    try:
        save_model(widen(ir.load(mixed)), target)
    except DemiError as error:
        target.with_name(target.name + ERROR).write_text(error.message)
