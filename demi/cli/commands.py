"""The table of commands, and the parser of all of them."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from demi.cli.parser import Parser
from demi.version import __version__

COMMANDS = {
    "export": "convert a trained FP32 model to a half-precision bundle and prove its accuracy",
    "rescale": "multiply an FP32 model's constants by powers of two so that it fits FP16, without changing its answers",
    "train": "train a model in half precision, with a reason for every step that is skipped",
    "repair": "fine-tune a trained model whose ranges leave FP16 until they fit, with the same answers",
    "calibrate": "measure a model's value ranges and find its precision plan, without converting it",
    "check": "compare a bundle with its FP32 reference and its accuracy budget (for CI)",
    "diff": "show which nodes differ between two bundles or plans, why, and how the error changes",
    "explain": "find where a bundle's half model departs from its FP32 reference, node by node",
    "bench": "time FP32 and half precision side by side on this machine",
    "serve": "serve a folder of bundles over HTTP and gRPC (KServe v2 / Open Inference Protocol)",
    "report": "write one HTML page about all versions of a model: errors, sizes, plans, and what changed",
    "versions": "show a model's versions, and the share of the requests that each answers",
    "canary": "send a share of a model's requests to one version, to compare it with the stable one",
    "promote": "make a version of a model the stable one, which answers every request without a version",
    "rollback": "end a model's canary, or return to the stable version of before",
    "push": "copy bundles into a bucket or a registry: s3://, gs://, oci://",
    "pull": "copy bundles from a bucket or web server to this machine, with their digests compared",
    "deploy": "write manifests that run a folder of models on Kubernetes, KServe or Ray; nothing is applied",
    "run": "run a bundle on inputs from a file and show its outputs",
    "list": "list the bundles in a folder: versions, sizes, measured errors, and what this machine proved about them",
    "inspect": "show what a bundle contains: inputs, outputs, plan, accuracy, origin, files",
    "doctor": "show what is installed, what this machine can compute, and what each command still needs",
    "completion": "print a script that completes commands and options in your shell",
}

EXIT_CODES = (
    "exit codes: 0 success, 1 over budget, 2 usage error or bad input, 3 something is missing on this machine, "
    "4 a library crashed or hung, 70 a defect in Demi"
)


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
        command_module(name).add_arguments(command)
    return parser


def command_module(command: str) -> Any:
    """Return the module of a command, with `add_arguments(parser)` and `run(args, console)`."""
    return importlib.import_module(f"demi.cli.{_MODULES.get(command, command)}")


_MODULES = {"list": "list_bundles"}
"""Modules whose command's name would hide a name of Python's."""
