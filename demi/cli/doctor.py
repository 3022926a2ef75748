"""`demi doctor`: what is installed, what this machine can compute, and what each command still needs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demi.cli.console import Console
from demi.cli.needs import HELPFUL, NEEDS, Package, packages_by_extra, problems, requirements
from demi.cli.options import add_json
from demi.cli.parser import require_command
from demi.errors import MissingError

if TYPE_CHECKING:
    from demi.cli.machine import Part

FOR_DEVELOPERS = {"dev", "examples"}
"""Extras that no command needs."""


@dataclass(frozen=True, slots=True)
class CommandState:
    """State of a command here: what it lacks, the extras that bring it, and what a part of it lacks."""

    command: str
    lacks: tuple[str, ...]
    extras: tuple[str, ...]
    optional: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.lacks

    @property
    def install(self) -> str:
        """Return the command that installs what is missing; empty if nothing is."""
        return f"pip install 'demi-inference[{','.join(self.extras)}]'" if self.extras else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi doctor`."""
    parser.add_argument(
        "commands",
        nargs="*",
        metavar="COMMAND",
        help="commands that must be able to work here: exit code 3 if one cannot",
    )
    add_json(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Show the machine, the packages and the commands. Raise MissingError if a named command cannot work."""
    from demi.cli.machine import parts
    from demi.version import __version__

    for command in args.commands:
        require_command([command], NEEDS)
    with console.quiet():
        machine = parts()
    packages = packages_by_extra(requirements())
    states = command_states(packages)
    if args.json:
        console.json(_document(__version__, machine, packages, states))
    else:
        _print(__version__, machine, packages, states, console)
    require_working([state for state in states if state.command in args.commands])
    return 0


def command_states(packages: Mapping[str, Sequence[Package]]) -> list[CommandState]:
    """Return the state of every command, given the packages of each extra."""
    states = []
    for command, extras in NEEDS.items():
        lacking = {extra: found for extra in extras if (found := problems(extra, packages))}
        lacks = tuple(problem for found in lacking.values() for problem in found)
        optional = tuple(
            f"{part} (extra `{extra}`)" for extra, part in HELPFUL.get(command, {}).items() if problems(extra, packages)
        )
        states.append(CommandState(command, lacks, tuple(lacking), optional))
    return states


def require_working(states: Sequence[CommandState]) -> None:
    """Raise MissingError for the first command that cannot work."""
    for state in states:
        if not state:
            raise MissingError(
                f"`demi {state.command}` cannot work here: {'; '.join(state.lacks)}",
                hint=f"install it with: {state.install}",
            )


def _print(
    version: str,
    machine: Sequence[Part],
    packages: Mapping[str, Sequence[Package]],
    states: Sequence[CommandState],
    console: Console,
) -> None:
    console.table(f"Demi {version}", ["", "found ", "details "], [[p.name, p.found, p.remark] for p in machine])
    shown = {extra: found for extra, found in packages.items() if extra not in FOR_DEVELOPERS}
    rows = [[extra, _versions(found), "; ".join(problems(extra, packages)) or "-"] for extra, found in shown.items()]
    if rows:
        console.table("packages by extra", ["extra", "installed ", "problems "], rows)
    else:
        console.note("note: Demi runs from a checkout that was not installed: pip install . shows its packages here")
    commands = [[f"demi {state.command}", *_state(state)] for state in states]
    console.table("commands", ["", "works ", "what is missing "], commands)


def _versions(packages: Sequence[Package]) -> str:
    return ", ".join(f"{each.name} {each.version}" for each in packages if each.version) or "-"


def _state(state: CommandState) -> list[str]:
    if not state:
        return ["no", f"{'; '.join(state.lacks)}: {state.install}"]
    return ["yes", f"without {' and '.join(state.optional)}" if state.optional else ""]


def _document(
    version: str,
    machine: Sequence[Part],
    packages: Mapping[str, Sequence[Package]],
    states: Sequence[CommandState],
) -> dict[str, object]:
    return {
        "demi": version,
        "machine": machine,
        "extras": packages,
        "commands": [
            {
                "command": state.command,
                "works": bool(state),
                "missing": state.lacks,
                "install": state.install or None,
                "without": state.optional,
            }
            for state in states
        ],
    }
