"""Runs one section in a process of its own, within its share of the time."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bench.gpu.setup import Cell, Row, Section, Setup


@dataclass(frozen=True, slots=True)
class Kind:
    """A section's title, and the share of the time that it may take."""

    title: str
    share: float


SECTIONS = {
    "facts": Kind("The machine", 0.05),
    "peaks": Kind("The roofline: what the device does at most", 0.05),
    "kernels": Kind("Kernels in FP16: the device beside the emulator", 0.05),
    "speed": Kind("Speed, inputs and outputs on the device", 0.35),
    "accuracy": Kind("Error against FP32: predicted by the emulator, and measured", 0.15),
    "serving": Kind("Serving in FP16, binary tensors over HTTP", 0.10),
    "tensorrt": Kind("TensorRT in FP16, inputs and outputs in the host's memory", 0.10),
    "compile": Kind("torch.compile in half", 0.15),
}
"""The sections in their order; each is the module of its name. Those that are slow to start come last."""

GRACE = 1.2
LATE_S = 20.0
"""A section checks its own time limit. One that goes on is stopped after `GRACE` times its share, or `LATE_S` later if
that is sooner: the last section may have the time of all, and the run may be limited to ten minutes from outside."""
END_S = 10.0
"""Time for an interrupted section to stop its own processes: a server left behind would keep the device's memory."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a section."""

    title: str
    rows: list[Row]
    complete: bool
    note: str

    def document(self) -> dict[str, object]:
        """Return the section for `--json`."""
        return {"title": self.title, "rows": self.rows, "complete": self.complete, "note": self.note}


def limits(names: list[str], until: float) -> Iterator[tuple[str, float]]:
    """Yield the sections, each with the seconds that it may take: its share of the time that is left."""
    for index, name in enumerate(names):
        left_s = max(until - time.monotonic(), 0.0)
        yield name, left_s * SECTIONS[name].share / sum(SECTIONS[other].share for other in names[index:])


def run_section(name: str, args: argparse.Namespace, limit_s: float) -> Outcome:
    """Run a section to its end, or to the end of its time, and collect its rows."""
    file = rows_file(args.work, name)
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu", "--section", name, "--device", args.device, "--batch", args.batch]
    command += ["--each", str(args.each), "--seconds", str(limit_s), "--work", str(args.work)]
    command += ["--quick"] if args.quick else []
    started = time.monotonic()
    try:
        code, said = run_within(command, min(limit_s * GRACE, limit_s + LATE_S))
        problem = said_last(said) if code else ""
    except subprocess.TimeoutExpired:
        problem = "its time was up, and it did not end by itself"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    note = f"{time.monotonic() - started:.1f} s" + (f"; INCOMPLETE: {problem}" if problem else "")
    return Outcome(SECTIONS[name].title, found, not problem, note)


def run_within(command: list[str], limit_s: float) -> tuple[int, str]:
    """Return a process's exit code and stderr; raise TimeoutExpired, after stopping it, when it takes longer.

    Its stderr is a file: a pipe would stay open as long as any worker that it has started.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            code = process.wait(limit_s)
        except BaseException:
            process.send_signal(signal.SIGINT)  # lets it stop the processes that it has started
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            process.kill()
            process.wait()
            raise
        said.seek(0)
        return code, said.read()


def run_here(name: str, args: argparse.Namespace) -> None:
    """Run a section in this process, storing each row as soon as it is yielded."""
    batches = tuple(int(part) for part in args.batch.split(","))
    setup = Setup(args.device, args.quick, batches, args.each, time.monotonic() + args.seconds, args.work)
    with rows_file(args.work, name).open("w") as file:
        for row in load(name).rows(setup):
            file.write(json.dumps({name: as_json(cell) for name, cell in row.items()}) + "\n")
            file.flush()
            if setup.out_of_time:
                raise SystemExit("its time was up; give it more with --seconds, or less to do with --only and --batch")


def load(name: str) -> Section:
    """Import the module of a section."""
    return cast(Section, importlib.import_module(f"bench.gpu.{name}"))


def as_json(cell: Cell) -> Cell:
    """Return a cell for JSON: NaN and infinities as text."""
    return str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell


def said_last(stderr: str) -> str:
    """Return the last line of a process's stderr, which is Python's error message."""
    return next((line for line in reversed(stderr.splitlines()) if line.strip()), "it ended without a word")[:200]


def rows_file(work: Path, name: str) -> Path:
    """Return the file of a section's rows."""
    return work / f"{name}.jsonl"
