"""The command line: `demi COMMAND` for every command in `demi.cli.commands`, and a script named `export`.

Each command is a module with `add_arguments(parser)` and `run(args, console) -> exit code`. A command imports what it
needs inside `run`, so `demi --help` is instant and works with any set of extras.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Sequence

from demi.cli import supervisor
from demi.cli.commands import COMMANDS, build_parser, command_module
from demi.cli.console import Console
from demi.cli.failures import as_demi_error
from demi.cli.parser import require_command
from demi.cli.termination import TerminatedError, raising_on_sigterm


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors go to stderr, never as a bare traceback.

    Called without arguments, that is as a script, run the command in a process of its own, so that a crash of native
    code is an error like any other.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _escape_unprintable()
    console = Console(verbose="--verbose" in arguments)
    if argv is None and _may_crash(arguments) and supervisor.can_split():
        code = supervisor.split(console)
        if code is not None:  # this is the supervisor, and the command has ended
            return code
    try:
        return _run_command(arguments, console)
    finally:
        supervisor.done()


def export_main() -> int:
    """Run the script named `export`: `export --fp16 model.pt` is `demi export --fp16 model.pt`."""
    sys.argv.insert(1, "export")
    return main()


def _run_command(arguments: Sequence[str], console: Console) -> int:
    """Run a command in this process; turn whatever it raises into a message and an exit code."""
    try:
        return _parse_and_run(arguments, console)
    except TerminatedError:
        console.note("terminated by SIGTERM; no partial files were left behind")
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        console.note("interrupted; no partial files were left behind")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        sys.stdout = None  # the reader has gone: write nothing more, not even at exit
        return 0
    except Exception as error:
        shown = as_demi_error(error)
        console.error(shown)
        return shown.exit_code


def _parse_and_run(arguments: Sequence[str], console: Console) -> int:
    require_command(arguments, COMMANDS)
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    # stdout is for results: what packages print goes to stderr. The server handles signals itself.
    interruptible = contextlib.nullcontext() if args.command == "serve" else raising_on_sigterm()
    with contextlib.redirect_stdout(sys.stderr), interruptible:
        return int(command_module(args.command).run(args, console))


def _may_crash(arguments: Sequence[str]) -> bool:
    """Return whether a command runs native code in this process; the server supervises its own."""
    return bool(arguments) and arguments[0] in COMMANDS.keys() - {"serve"} and not {"-h", "--help"} & set(arguments)


def _escape_unprintable() -> None:
    """Escape characters that the terminal's encoding lacks, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
