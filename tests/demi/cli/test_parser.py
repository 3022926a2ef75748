"""Suggestions for commands and options that do not exist."""

import pytest

from demi.cli.main import main
from demi.cli.parser import did_you_mean


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["exprot", "m.pt"], "unknown command `exprot`", "did you mean demi export? see demi --help"),
        (["dance"], "unknown command `dance`", "see demi --help"),
        (["export", "m.pt", "--fp61"], "unknown option --fp61", "did you mean --fp16? see demi export --help"),
        (["serve", "models", "--prot=80"], "unknown option --prot", "did you mean --port? see demi serve --help"),
        (["check", "m", "--quetzalcoatl"], "unknown option --quetzalcoatl", "see demi check --help"),
        (["bench", "m", "n"], "unexpected argument `n`", "see demi bench --help"),
        (["--vresion"], "unknown option --vresion", "did you mean --version? see demi --help"),
    ],
)
def test_suggestions(arguments, message, hint, capsys):
    """The error names the wrong word, and the hint the nearest right one and the command's own help."""
    assert 2 == main(arguments)
    assert f"error: {message}\nhint: {hint}\n" == capsys.readouterr().err


def test_no_word_is_near():
    """Words that are alike by chance are not suggested."""
    assert "" == did_you_mean("--xyz", ["--fp16", "--force"])
