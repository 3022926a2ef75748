"""The command line: `demi export | rescale | calibrate | check | diff | explain | bench | serve`, and a script named `export`.

Each command is a module with `add_arguments(parser)` and `run(args, console) -> exit code`. A command imports what it
needs inside `run`, so `demi --help` is instant and works with any set of extras.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import signal
import sys
from collections.abc import Sequence
from typing import Any

from demi.cli import supervisor
from demi.cli.console import Console
from demi.cli.failures import as_demi_error
from demi.cli.parser import Parser, require_command
from demi.cli.termination import TerminatedError, raising_on_sigterm
from demi.version import __version__

COMMANDS = {
    "export": "convert a trained FP32 model to a half-precision bundle and prove its accuracy",
    "rescale": "multiply an FP32 model's constants by powers of two so that it fits FP16, without changing its answers",
    "train": "train a model in half precision, with a reason for every step that is skipped",
    "calibrate": "measure a model's value ranges and find its precision plan, without converting it",
    "check": "compare a bundle with its FP32 reference and its accuracy budget (for CI)",
    "diff": "show which nodes differ between two bundles or plans, why, and how the error changes",
    "explain": "find where a bundle's half model departs from its FP32 reference, node by node",
    "bench": "time FP32 and half precision side by side on this machine",
    "serve": "serve a folder of bundles over HTTP and gRPC (KServe v2 / Open Inference Protocol)",
}

EXIT_CODES = (
    "exit codes: 0 success, 1 over budget, 2 usage error or bad input, 3 something is missing on this machine, "
    "4 a library crashed or hung, 70 a defect in Demi"
)


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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; packages that a command needs are not imported."""
    parser = Parser(prog="demi", description="Half-precision inference you can trust.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"demi {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=EXIT_CODES
        )
        command.add_argument("--verbose", action="store_true", help="show full tracebacks and the tools' own output")
        _module(name).add_arguments(command)
    return parser


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
        return int(_module(args.command).run(args, console))


def _module(command: str) -> Any:
    return importlib.import_module(f"demi.cli.{command}")


def _may_crash(arguments: Sequence[str]) -> bool:
    """Return whether a command runs native code in this process; the server supervises its own."""
    return bool(arguments) and arguments[0] in COMMANDS.keys() - {"serve"} and not {"-h", "--help"} & set(arguments)


def _escape_unprintable() -> None:
    """Escape characters that the terminal's encoding lacks, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
