"""Export of a wild model in its own process, and its evaluation on held-out inputs."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from demi.accuracy.budget import Budget
from demi.accuracy.compare import compare
from demi.bundles.bundle import open_bundle
from demi.calibration.gate.bundle_sessions import half_session, reference_session, run_half
from demi.runtime.onnxruntime.session import open_session
from demi.tensors import Feeds
from tests.paths import ROOT
from tests.wild.models import Wild
from tests.wild.task import Run

PRECISIONS = ("fp16", "bf16")
LIMIT_S = 300
"""Time limit of an export in seconds; no model here is large."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Result of `demi export` for a model, with its time and memory."""

    name: str
    precision: str
    bundle: Path
    seconds: float
    cpu_seconds: float
    said: str
    """Its stderr."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Its JSON; empty if it failed."""
    failure: str = ""
    """Its error; empty if it succeeded."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Evaluation of a bundle on held-out inputs, under the emulator."""

    error: float
    """The largest relative L2 of an output."""
    over: tuple[str, ...]
    """Outputs beyond the default budget."""
    answer: str
    """Differences of the task's answer from the FP32 model's; empty if there are none."""


def write_sets(sets: list[Feeds], folder: Path) -> Path:
    """Write sets of inputs as a folder for `--sample`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, feeds in enumerate(sets):
        np.savez(folder / f"{index:03}.npz", **feeds)
    return folder


def source_run(model: Wild) -> Run:
    """Return a function that runs the source model (an ONNX file), for inputs that depend on its outputs."""
    if model.path.suffix == ".onnx":
        return open_session(model.path).run

    def refuse(_: Feeds) -> Feeds:
        raise NotImplementedError(f"{model.name} is not an ONNX file")

    return refuse


def export_command(source: Path, precision: str, samples: Path, target: Path, *flags: str) -> list[str]:
    """Return the command that exports a model; `precision` is `fp16`, `bf16`, or `cpu` for `--for cpu`."""
    wanted = ["--for", "cpu"] if precision == "cpu" else [f"--{precision}"]
    command = [sys.executable, "-m", "demi", "export", *wanted, str(source), "--sample", str(samples)]
    return [*command, "-o", str(target), "--force", *flags]


def export(model: Wild, precision: str, folder: Path) -> Exported:
    """Export a model with its samples into `folder`; a failed export is a result as well.

    `precision` is `fp16`, `bf16`, or `cpu` for the one that is found to be best on this CPU.
    """
    samples = folder / "samples" / model.name
    if not samples.is_dir():
        write_sets(model.task.samples(source_run(model)), samples)
    target = folder / precision / f"{model.name}-{precision}"
    source = _source(model, folder)
    command = export_command(source, precision, samples, target, "--json", "--no-report", *model.flags)
    # CPU seconds of both cores count, and a child's are known once it has ended.
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=_environment())
        code, printed, said = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        code, printed, said = None, "", error.stderr.decode() if isinstance(error.stderr, bytes) else ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Exported(
        model.name,
        precision,
        target / "1",
        seconds=time.monotonic() - start,
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        said=said,
        facts=json.loads(printed) if code == 0 else {},
        failure="" if code == 0 else _ending(code, said),
    )


def _source(model: Wild, folder: Path) -> Path:
    """Return the file to export: transformers' `.bin` is not accepted as a single file."""
    if model.path.suffix != ".bin":
        return model.path
    link = folder / "sources" / f"{model.name}.pt"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(model.path)
    return link


def _environment() -> dict[str, str]:
    """Return the environment of the export, in which this folder's factories can be imported."""
    root = str(ROOT)
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _ending(code: int | None, said: str) -> str:
    """Return the exit status of an export and its error."""
    how = f"not done after {LIMIT_S} s" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
    lines = said.strip().splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith("error:")), len(lines) - 1)
    return " / ".join([how, *(line.strip() for line in lines[first : first + 4])])


def judge(model: Wild, exported: Exported) -> Judged:
    """Evaluate the bundle's error and answer on held-out inputs."""
    bundle = open_bundle(exported.bundle)
    with half_session(bundle) as half, reference_session(bundle) as reference:
        assert reference is not None

        def half_run(feeds: Feeds) -> Feeds:
            return run_half(half, fitted(half, feeds))

        def single_run(feeds: Feeds) -> Feeds:
            return reference.run(fitted(reference, feeds))

        sets = model.task.heldout(single_run)
        found = compare([single_run(feeds) for feeds in sets], [half_run(feeds) for feeds in sets], Budget())
        differs = model.task.differs(model.task.answer(single_run), model.task.answer(half_run))
    return Judged(found.worst.relative_l2, tuple(found.failures()), differs)


def fitted(session: Any, feeds: Feeds) -> Feeds:
    """Return the arrays that a session takes, in its own types."""
    return {spec.name: feeds[spec.name].astype(spec.dtype.numpy, copy=False) for spec in session.inputs}
