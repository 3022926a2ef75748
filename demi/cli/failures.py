"""Translation of unforeseen exceptions into Demi's own errors: what is wrong and what to do next."""

from __future__ import annotations

from demi.errors import DefectError, DemiError, InputError, MissingError, PackageError, missing_package

EXTRAS = {
    "torch": "torch",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "torch",
    "onnxconverter_common": "export",
    "scipy": "export",
    "matplotlib": "report",
    "jinja2": "report",
}
"""The extra that brings a package, by the name it is imported by; all others come with `server`."""


def as_demi_error(error: Exception) -> DemiError:
    """Return the error to show for any exception, with the exception as its cause."""
    if isinstance(error, DemiError):
        return error
    translated = _translate(error)
    translated.__cause__ = error
    return translated


def _translate(error: Exception) -> DemiError:
    match error:
        case ModuleNotFoundError():
            return _module_not_found(error)
        case ImportError():  # the package is installed, and broken
            return PackageError(
                f"cannot import a Python package: {_first_line(error)}",
                where=error.path,
                hint="reinstall it in a version that suits this machine; --verbose shows what imports it",
            )
        case MemoryError():
            return MissingError(
                f"out of memory: {_first_line(error)}",
                hint="give the process more memory, or use fewer or smaller samples",
            )
        case RecursionError():
            return InputError(
                "the model, or a file that describes it, is nested too deeply",
                hint="check that it is the file you meant; --verbose shows where it is nested too deeply",
            )
        case OSError():
            return InputError(
                f"operating system error: {error.strerror or error}",
                where=str(error.filename) if error.filename is not None else None,
                hint="check the path, free space and permissions; --verbose shows where it happened",
            )
        case _:
            return _defect(error)


def _module_not_found(error: ModuleNotFoundError) -> DemiError:
    package = (error.name or "").partition(".")[0]
    if package == "demi":  # one of our own modules, which no installation brings
        return _defect(error)
    return missing_package(package, EXTRAS.get(package, "server"))


def _defect(error: Exception) -> DefectError:
    return DefectError(
        f"{type(error).__name__}: {_first_line(error)}",
        hint="this is a defect in Demi; please report it with the output of --verbose",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
