"""All errors that Demi raises on purpose, with the exit codes of commands that end with them.

    DemiError
    ├── InputError            2   an argument, a file or a name from the user is wrong
    │   ├── SourceError           a model file that cannot be read or exported
    │   ├── SampleError           calibration samples that do not fit the model
    │   ├── TensorError           one array that does not fit its TensorSpec
    │   ├── ConversionError       a graph that cannot be converted to valid half precision
    │   └── BundleError           a bundle that is damaged, missing or in the way
    │       └── DigestError       a file of a bundle that differs from its digest
    ├── OverBudgetError       1   the accuracy budget is not met
    ├── DivergedError         1   a training whose steps are skipped one after the other
    ├── ResumeError           1   a resumed training that gives other weights
    ├── InferenceError        2   the runtime failed on inputs that fit the model
    │   ├── DeviceLostError       a GPU that needs a new process after an error
    │   └── StoppedError          a run that was stopped before its end
    ├── MissingError          3   something is missing on this machine
    │   ├── PackageError          a Python package (names the extra that installs it)
    │   └── DeviceError           a GPU, a driver or one of its libraries
    ├── CrashError            4   native code of a library ended its process, or hung
    └── DefectError          70   a defect in Demi that Demi detected itself

Any other exception is a defect in Demi as well, and ends a command with `DEFECT`.

An error states what is wrong, where, and what to do next; `demi.cli.main` and `demi.server.errors` format it.
"""

from __future__ import annotations

from typing import ClassVar

DEFECT = 70
"""The exit code of a command that ended with an unexpected exception (EX_SOFTWARE of sysexits)."""


class DemiError(Exception):
    """Base class: a message, the place of the problem (`where`), and the next step (`hint`)."""

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
    """Something that the user gave is wrong: an argument, a file, a name."""


class SourceError(InputError):
    """A model file cannot be read, or its model cannot be exported to ONNX."""


class SampleError(InputError):
    """Calibration or evaluation samples do not fit the model's inputs."""


class TensorError(InputError):
    """One array does not fit its TensorSpec: name, dtype, rank, dimension or value."""


class ConversionError(InputError):
    """A graph cannot be converted to a valid half-precision graph."""


class BundleError(InputError):
    """A bundle is missing, damaged, of an unknown schema, or in the way."""


class DigestError(BundleError):
    """A file of a bundle differs from its digest in the manifest."""


class OverBudgetError(DemiError):
    """The measured error is beyond the accuracy budget."""

    exit_code = 1


class DivergedError(DemiError):
    """Too many steps of a training were skipped in a row: nothing is learned any more."""

    exit_code = 1


class ResumeError(DemiError):
    """A resumed training does not give the weights of the one that went on."""

    exit_code = 1


class InferenceError(DemiError):
    """The runtime failed on inputs that fit the model."""


class DeviceLostError(InferenceError):
    """The device failed, and nothing runs on it any more until the process is restarted."""


class StoppedError(InferenceError):
    """A run was stopped before its end because its last caller had left."""


class MissingError(DemiError):
    """Something Demi needs is missing on this machine."""

    exit_code = 3


class PackageError(MissingError):
    """A Python package is missing; the hint names the extra that installs it."""


class DeviceError(MissingError):
    """The requested device, its driver or one of its libraries is missing or unusable."""


class CrashError(DemiError):
    """Native code of a library ended the process that it ran in, or hung."""

    exit_code = 4


class DefectError(DemiError):
    """Demi detected that one of its own results is wrong."""

    exit_code = DEFECT


def missing_package(package: str, extra: str) -> PackageError:
    """Return the error for a failed import, with the command that installs the package."""
    return PackageError(
        f"this command needs the Python package `{package}`, which is not installed",
        hint=f"install it with: pip install 'demi-inference[{extra}]'",
    )
