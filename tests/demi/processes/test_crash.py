"""Descriptions of crashes."""

from __future__ import annotations

import signal

import pytest

from demi.errors import CrashError, InputError
from demi.processes.crash import LIMIT, died, hung, native_limit_s


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, "died with SIGSEGV (signal 11) while opening it: it accessed invalid memory"),
        (signal.SIGILL, "died with SIGILL (signal 4) while opening it: it used an instruction"),
        (signal.SIGKILL, "died with SIGKILL (signal 9) while opening it: it was killed"),
        (signal.SIGUSR1, "died with SIGUSR1 (signal 10) while opening it"),
        (40, "died with signal 40 (signal 40) while opening it"),
    ],
)
def test_signals_have_names_and_meanings(number, words):
    """The text has the signal, the step, its meaning, and a hint."""
    error = died(-number, "opening it")

    assert isinstance(error, CrashError)
    assert 4 == error.exit_code
    assert words in error.message
    assert error.hint


def test_a_library_that_ends_the_process():
    """An exit from inside a library is a crash as well, with or without a known step."""
    assert "the process was ended by a library, with code 3, at work" == died(3, "").message
    assert "with code 0, while planning" in died(0, "planning").message


def test_a_process_that_hangs():
    """The text has the time limit and the setting that changes it."""
    error = hung(2.5, "opening it", "--load-timeout")

    assert "the process hung while opening it: not finished after 2.5 s" == error.message
    assert "raise --load-timeout (0 for no limit)" in str(error.hint)


def test_the_limit_is_a_variable():
    """The time limit has a default and must be a number."""
    assert 600.0 == native_limit_s({})
    assert 0.5 == native_limit_s({LIMIT: "0.5"})
    with pytest.raises(InputError, match=LIMIT):
        native_limit_s({LIMIT: "long"})
