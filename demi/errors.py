"""Every error Demi raises on purpose, and the exit code each one ends a command with.

    DemiError
    ├── InputError            2   something the user gave is wrong
    │   ├── SourceError           a model file that cannot be read or exported
    │   ├── SampleError           calibration samples that do not fit the model
    │   ├── TensorError           one array that does not fit its TensorSpec
    │   ├── ConversionError       a graph that cannot be turned into a valid half-precision one
    │   └── BundleError           a bundle that is damaged, missing or in the way
    │       └── DigestError       a file of a bundle is not the one that was written
    ├── OverBudgetError       1   the accuracy budget is not met
    ├── InferenceError        2   the runtime failed on inputs that fit the model
    │   ├── DeviceLostError       a GPU that has failed for good
    │   └── StoppedError          a run that was stopped before its end
    ├── MissingError          3   something is missing on this machine
    │   ├── PackageError          a Python package (names the extra that brings it)
    │   └── DeviceError           a GPU, a driver or one of its libraries
    ├── CrashError            4   a library's native code ended its process, or never ended
    └── DefectError          70   Demi has found itself wrong

Any other exception is a defect in Demi as well: it ends a command with `DEFECT`.

An error says what is wrong, where, and what to do next; `demi.cli.main` and `demi.server.errors` decide how it looks.
"""

from __future__ import annotations

from typing import ClassVar

DEFECT = 70
"""The exit code of a command that met an exception nobody foresaw (EX_SOFTWARE of sysexits)."""


class DemiError(Exception):
    """The root of the tree: a message, the place it is about, and a hint at the next step."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.where:
            lines.append(f"  in {self.where}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class InputError(DemiError):
    """Something the user gave is wrong: a flag, a file, a name."""


class SourceError(InputError):
    """A model file cannot be read, or its model cannot be exported to ONNX."""


class SampleError(InputError):
    """Calibration or evaluation samples do not fit the model's inputs."""


class TensorError(InputError):
    """One array does not fit its TensorSpec: name, dtype, rank, dimension or value."""


class ConversionError(InputError):
    """A graph cannot be turned into a valid half-precision graph."""


class BundleError(InputError):
    """A bundle is missing, damaged, of an unknown schema, or in the way."""


class DigestError(BundleError):
    """A file in a bundle has other bytes than the manifest promises."""


class OverBudgetError(DemiError):
    """The measured error is beyond the accuracy budget."""

    exit_code = 1


class InferenceError(DemiError):
    """The runtime failed on inputs that fit the model."""


class DeviceLostError(InferenceError):
    """The device has failed for good: nothing runs on it any more until the process is started anew."""


class StoppedError(InferenceError):
    """A run was stopped before its end, since nobody waited for it any more."""


class MissingError(DemiError):
    """Something Demi needs is missing on this machine."""

    exit_code = 3


class PackageError(MissingError):
    """A Python package is missing; the message names the extra that brings it."""


class DeviceError(MissingError):
    """The wanted device, its driver or its libraries are not there."""


class CrashError(DemiError):
    """A library's native code ended the process that it ran in, or never came to an end."""

    exit_code = 4


class DefectError(DemiError):
    """Demi has made something that is not as it must be, and has noticed."""

    exit_code = DEFECT


def missing_package(package: str, extra: str) -> PackageError:
    """The error for an import that failed: what is missing and the command that brings it."""
    return PackageError(
        f"this command needs the Python package `{package}`, which is not installed",
        hint=f"install it with: pip install 'demi-inference[{extra}]'",
    )
