"""The command line: `demi export | calibrate | check | diff | explain | bench | serve`, and a script named `export`.

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
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from demi.cli import supervisor
from demi.cli.console import Console
from demi.errors import (
    DefectError,
    DemiError,
    InputError,
    MissingError,
    PackageError,
    missing_package,
)
from demi.processes import recorder
from demi.version import __version__

COMMANDS = {
    "export": "turn a trained FP32 model into a half-precision bundle, and prove its accuracy",
    "calibrate": "measure a model's ranges and find its precision plan, without converting it",
    "check": "compare a bundle with its FP32 reference and its accuracy budget (for CI)",
    "diff": "show which nodes differ between two bundles or plans, why, and what it does to the error",
    "explain": "find where a bundle's half model leaves its FP32 reference, node by node",
    "bench": "time FP32 and half precision side by side on this machine",
    "serve": "serve a folder of bundles over HTTP and gRPC (KServe v2 / Open Inference Protocol)",
}

EXIT_CODES = (
    "exit codes: 0 done, 1 over budget, 2 usage or bad input, 3 something missing on this machine, 4 a library ended the "
    "process or hung, 70 a defect in Demi"
)

_EXTRAS = {
    "torch": "torch",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "torch",
    "onnxconverter_common": "export",
    "scipy": "export",
    "matplotlib": "report",
    "jinja2": "report",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like every other error of Demi."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(message, hint=f"see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; importing no package that a command needs."""
    parser = _Parser(prog="demi", description="Half-precision inference you can trust.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"demi {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=EXIT_CODES
        )
        command.add_argument("--verbose", action="store_true", help="show full traces and the tools' own output")
        importlib.import_module(f"demi.cli.{name}").add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are written to stderr, never a bare traceback.

    The process's own arguments are run in a process of their own, whose death is an error like any other.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal has no letters for is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    console = Console(verbose="--verbose" in arguments)
    if (
        argv is None
        and _may_die(arguments)
        and supervisor.can_split()
        and (code := supervisor.split(console)) is not None
    ):
        return code
    try:
        return _run(arguments, console)
    finally:
        supervisor.done()


def _may_die(arguments: Sequence[str]) -> bool:
    """Whether these arguments run native code that a server does not look after itself."""
    return bool(arguments) and arguments[0] in COMMANDS.keys() - {"serve"} and not {"-h", "--help"} & set(arguments)


def _run(arguments: Sequence[str], console: Console) -> int:
    """One command in this process, whatever it raises."""
    try:
        parser = build_parser()
        args = parser.parse_args(arguments)
        if args.command is None:
            parser.print_help(sys.stderr)
            return 2
        # What others print is no result; and the server has its own way of ending.
        with contextlib.redirect_stdout(sys.stderr), _ended_in_order(on=args.command != "serve"):
            return int(importlib.import_module(f"demi.cli.{args.command}").run(args, console))
    except DemiError as error:
        console.error(error)
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("demi", "exporter", "calibration", "server"):
            return _defect(error, console)  # our own, not a package to install
        missing = missing_package(package, _EXTRAS.get(package, "server"))
        console.error(missing)
        return missing.exit_code
    except ImportError as error:  # a package that is there, and broken
        told: DemiError = PackageError(
            f"a Python package cannot be imported: {_first_line(error)}",
            where=error.path,
            hint="install it again, in a version that suits this machine; --verbose shows who needs it",
        )
        return _told(told, error, console)
    except MemoryError as error:
        told = MissingError(
            f"memory ran out: {_first_line(error)}",
            hint="give the process more memory, or smaller and fewer samples",
        )
        return _told(told, error, console)
    except RecursionError as error:
        told = InputError(
            "the model, or a file about it, is nested or chained too deep to be followed",
            hint="is it what you think it is? --verbose shows where it is too deep",
        )
        return _told(told, error, console)
    except TerminatedError:
        console.note("ended by SIGTERM; nothing half-written was left behind")
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        console.note("interrupted; nothing half-written was left behind")
        return 130
    except BrokenPipeError:
        sys.stdout = None  # the reader has gone: nothing more to say, at exit neither
        return 0
    except OSError as error:
        told = InputError(
            f"the system says: {error.strerror or error}",
            where=str(error.filename) if error.filename is not None else None,
            hint="check the path, free space and permissions; --verbose shows where it happened",
        )
        return _told(told, error, console)
    except Exception as error:
        return _defect(error, console)


class TerminatedError(BaseException):
    """SIGTERM came: what `finally` and `with` put in order is put in order, as after Ctrl-C."""


@contextlib.contextmanager
def _ended_in_order(*, on: bool) -> Iterator[None]:
    """While the block runs, SIGTERM raises TerminatedError there; only the main thread can be told.

    In a process that is watched, Ctrl-C comes on two ways, from the terminal and from who watches: it counts once.
    """
    if not on or threading.current_thread() is not threading.main_thread():
        yield
        return

    watched = recorder.is_watched()
    errors: dict[int, type[BaseException]] = {signal.SIGTERM: TerminatedError}
    if watched and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        errors[signal.SIGINT] = KeyboardInterrupt

    def end(number: int, frame: FrameType | None) -> None:
        for each in errors:
            signal.signal(each, signal.SIG_IGN)  # once is enough: nothing cuts short what is put in order
        raise errors[number]

    before = {number: signal.signal(number, end) for number in errors}
    try:
        yield
    finally:
        for number, handler in before.items():
            if not (watched and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, handler)


def _defect(error: Exception, console: Console) -> int:
    """Tell of an exception that nobody foresaw, without its trace unless --verbose."""
    told = DefectError(
        f"{type(error).__name__}: {_first_line(error)}",
        hint="this is a defect in Demi: please report it, with what --verbose prints",
    )
    return _told(told, error, console)


def _told(told: DemiError, error: BaseException, console: Console) -> int:
    """Report an error in Demi's words, with the one behind it; the exit code."""
    told.__cause__ = error
    console.error(told)
    return told.exit_code


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "without a message"


def export_main() -> int:
    """The script named `export`: `export --fp16 model.pt` is `demi export --fp16 model.pt`."""
    sys.argv.insert(1, "export")
    return main()
