"""Time of whole commands: `demi export` beside ModelOpt AutoCast's, on trained models of others.

    python -m bench.planning_commands --peers /path/to/python --wild magika,nudenet

Both start from the same file and the same inputs, alternating, and write a model; imports and the start of the interpreter
count, as they do for users. `demi export` also verifies its plan, proves which requests may share a run, and writes its
report. AutoCast gets the first set of inputs only. Prints a Markdown table of the best of the rounds. The peers'
interpreter needs `nvidia-modelopt[onnx]`; accuracy is compared by `bench.planning`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.wild.exporting import export_command, source_run, write_sets
from tests.wild.models import BY_NAME, Wild

HEADER = """| model | `demi export`, s | AutoCast, s | ratio |
| --- | ---: | ---: | ---: |"""


def main() -> None:
    """Run both commands on every model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, metavar="PYTHON", help="interpreter with nvidia-modelopt")
    parser.add_argument("--wild", required=True, metavar="A,B", help="names of models in tests/wild, as .onnx files")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(prefix="demi-commands-") as folder:
        for name in args.wild.split(","):
            print(row(BY_NAME[name], args.peers, args.rounds, Path(folder)), flush=True)


def row(model: Wild, peers: str, rounds: int, folder: Path) -> str:
    """Return the line of one model: the best of the rounds for each command."""
    samples = write_sets(model.task.samples(source_run(model)), folder / "samples" / model.name)
    commands = (demi_command(model, samples, folder), autocast_command(peers, model, samples, folder))
    times = [[seconds(command) for command in commands] for _ in range(rounds)]
    ours, theirs = (min(each) for each in zip(*times, strict=True))
    return f"| {model.name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |"


def demi_command(model: Wild, samples: Path, folder: Path) -> list[str]:
    """Return the command that exports a model with its samples."""
    return export_command(model.path, "fp16", samples, folder / "bundles" / model.name, *model.flags)


def autocast_command(peers: str, model: Wild, samples: Path, folder: Path) -> list[str]:
    """Return the command that converts the same file with the first set of samples."""
    return [peers, "-m", "modelopt.onnx.autocast", "--onnx_path", str(model.path),
            "--calibration_data", str(min(samples.glob("*.npz"))),
            "--output_path", str(folder / "autocast.onnx"), "--keep_io_types"]  # fmt: skip


def seconds(command: Sequence[str]) -> float:
    """Return the wall time of a command in seconds; infinite if it fails, with its last line on stderr."""
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{command[2]}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}", file=sys.stderr)
        return float("inf")
    return time.monotonic() - start


if __name__ == "__main__":
    main()
