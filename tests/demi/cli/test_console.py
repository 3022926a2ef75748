"""The two streams of a command."""

import logging
import math
import sys
import warnings

import pytest

from demi.cli.console import Console, mebibytes, significant
from demi.errors import InputError


def test_data_goes_to_stdout(capsys):
    """Results are for the next program in the pipe."""
    Console().data("result")

    assert ("result\n", "") == capsys.readouterr()


@pytest.mark.parametrize(
    ("say", "text"),
    [
        (lambda console: console.note("careful"), "careful\n"),
        (lambda console: console.warn("careful"), "warning: careful\n"),
        (lambda console: console.error(InputError("no", hint="yes")), "error: no\nhint: yes\n"),
    ],
)
def test_messages_go_to_stderr(say, text, capsys):
    """Everything else is for the person."""
    say(Console())

    assert ("", text) == capsys.readouterr()


def test_json_has_no_infinities(capsys):
    """Infinities and NaN become null."""
    Console().json({"a": math.inf, "b": math.nan, "c": 1.5})

    assert '{\n  "a": null,\n  "b": null,\n  "c": 1.5\n}\n' == capsys.readouterr().out


def test_table(capsys):
    """A table has a title, its columns, and cells as they are: brackets are no markup."""
    Console().table("title", ["name", "value"], [["x[batch]", "1"], ["[bold]y", "10"]])
    out = capsys.readouterr().out

    for words in ("title", "name", "value", "x[batch]", "[bold]y", "10"):
        assert words in out
    assert "\x1b" not in out


def test_steps_are_quiet_when_short(capsys):
    """A phase that takes no time says nothing."""
    with Console().step("reading"):
        pass

    assert ("", "") == capsys.readouterr()


class TestQuiet:
    """Other packages' chatter."""

    def chatter(self):
        warnings.warn("from a package", UserWarning, stacklevel=2)
        logging.getLogger("package").warning("from a logger")

    def test_warnings_are_hidden(self, capsys):
        """Warnings and logs of other packages are not shown."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Console().quiet():
                self.chatter()

        assert "" == capsys.readouterr().err

    def test_output_of_libraries_is_shown_with_verbose(self):
        """With `--verbose` they are."""
        with Console(verbose=True).quiet(), pytest.warns(UserWarning, match="from a package"):
            self.chatter()

    def test_quiet_restores_logging(self):
        """Logging is restored after the block, also after an error."""
        before = logging.root.manager.disable
        with pytest.raises(KeyError), Console().quiet():
            raise KeyError

        assert before == logging.root.manager.disable


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (3 * 2**30, "3,072.0 MiB")]
)
def test_mebibytes(count, text):
    """Bytes are shown in the unit that fits."""
    assert text == mebibytes(count)


def test_three_significant_digits():
    """A measured number has no more digits than it deserves."""
    assert ["0.00123", "1.23e-09", "inf"] == [significant(value) for value in (0.0012345, 1.2345e-9, math.inf)]


def test_stdout_is_not_a_terminal_here():
    """The tests above see what a pipe sees."""
    assert not sys.stdout.isatty()
