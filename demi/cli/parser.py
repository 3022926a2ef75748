"""The argument parser of `demi`: errors look like every other error of Demi, and name what was probably meant."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from demi.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputError, with a suggestion for options that do not exist."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the usage and leaving the process."""
        raise InputError(message, hint=f"see {self.prog} --help")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse arguments; raise InputError here for those of no option, where the command's own options are known."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            raise self._unknown(unknown)
        return parsed, unknown

    def _unknown(self, arguments: Sequence[str]) -> InputError:
        option = next((each for each in arguments if each.startswith("-")), None)
        if option is None:
            return InputError(f"unexpected argument `{arguments[0]}`", hint=f"see {self.prog} --help")
        name = option.partition("=")[0]
        known = [flag for action in self._actions for flag in action.option_strings]
        return InputError(f"unknown option {name}", hint=f"{did_you_mean(name, known)}see {self.prog} --help")


def require_command(arguments: Sequence[str], commands: Collection[str]) -> None:
    """Raise InputError if the first argument is neither an option nor a command."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        hint = f"{did_you_mean(arguments[0], commands, 'demi ')}see demi --help"
        raise InputError(f"unknown command `{arguments[0]}`", hint=hint)


def did_you_mean(word: str, known: Collection[str], prefix: str = "") -> str:
    """Return `did you mean X? ` for the known word that is most like `word`; empty if none is."""
    near = difflib.get_close_matches(word, known, 1, cutoff=0.7)
    return f"did you mean {prefix}{near[0]}? " if near else ""
