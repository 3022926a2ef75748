"""Errors state the problem, its place and the next step, and determine the exit code."""

import pytest

from demi import errors
from demi.errors import (
    DemiError,
    InputError,
    PackageError,
    SourceError,
    missing_package,
)

EXIT_CODES = {
    "InputError": 2,
    "SourceError": 2,
    "SampleError": 2,
    "TensorError": 2,
    "ConversionError": 2,
    "BundleError": 2,
    "DigestError": 2,
    "OverBudgetError": 1,
    "DivergedError": 1,
    "ResumeError": 1,
    "InferenceError": 2,
    "DeviceLostError": 2,
    "StoppedError": 2,
    "MissingError": 3,
    "PackageError": 3,
    "DeviceError": 3,
    "CrashError": 4,
    "DefectError": 70,
}


def all_errors():
    return {
        name: error
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, DemiError) and error is not DemiError
    }


def test_every_error_has_its_documented_exit_code():
    """The tree in the docstring and the classes have the same exit codes."""
    assert EXIT_CODES == {name: error.exit_code for name, error in all_errors().items()}


@pytest.mark.parametrize("name", list(EXIT_CODES))
def test_tree_in_the_docstring_names_every_error(name):
    """The tree in the module's docstring lists every error."""
    assert name in errors.__doc__


@pytest.mark.parametrize("error", all_errors().values(), ids=lambda error: error.__name__)
def test_text_has_message_place_and_hint(error):
    """The text of an error is its message, its place and its hint, each on a line."""
    assert "no such file\n  in a.pt\nhint: give a file" == str(error("no such file", where="a.pt", hint="give a file"))


def test_text_without_place_and_hint_is_the_message():
    """Without place and hint the text is the message."""
    assert "no" == str(InputError("no"))


def test_narrow_errors_are_input_errors():
    """`except InputError` also catches a file that cannot be read."""
    assert issubclass(SourceError, InputError)


def test_missing_package_names_the_extra():
    """A missing package is named with the command that installs it."""
    error = missing_package("torch", "torch")

    assert isinstance(error, PackageError)
    assert "pip install 'demi-inference[torch]'" in error.hint
