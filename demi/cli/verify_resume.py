"""`demi train --verify-resume`: the end of a run done again from a checkpoint, in a fresh process, bit for bit."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from demi.bundles.drafts import scratch
from demi.errors import InputError, ResumeError
from demi.processes.import_path import same_imports

SAME = (
    "steps", "seed", "lr", "weight_decay", "schedule", "warmup", "clip", "accumulate", "device", "loss_scale", "max_skips",
)  # fmt: skip
"""Options that a run's numbers depend on."""


def verify_resume(args: argparse.Namespace, folder: Path, precision: str, digest: str) -> int:
    """Resume a finished run from its last checkpoint but one, elsewhere; return the step it was resumed at.

    Raises InputError without an earlier checkpoint, and ResumeError where the weights differ.
    """
    from demi.training.checkpoint import FOLDER, checkpoints
    from demi.training.rng import cpu_threads
    from demi.training.settle_plan import FILE as PLAN

    found = checkpoints(folder)
    if len(found) < 2:
        raise InputError(
            "there is no checkpoint before the last one", where="--verify-resume", hint="give a smaller --save-every"
        )
    with scratch() as room:
        shutil.copytree(found[-2], room / "run" / FOLDER / found[-2].name)
        if (folder / PLAN).is_file():
            shutil.copyfile(folder / PLAN, room / "run" / PLAN)
        options = [word for name in SAME for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
        command = ["train", args.task, *options, "--precision", precision, "--inspect-every", "0"]
        command += ["--rehearse"] if args.rehearse else []
        ended = subprocess.run(
            [sys.executable, "-m", "demi", *command, "--resume", "--json", "-o", str(room / "run")],
            capture_output=True,
            text=True,
            env=same_imports() | {"OMP_NUM_THREADS": str(cpu_threads())},
        )
    if ended.returncode:
        raise ResumeError(f"the resumed run failed: {ended.stderr.strip()}", where=str(found[-2]))
    if json.loads(ended.stdout)["digest"] != digest:
        raise ResumeError(
            "the resumed run has other weights",
            where=str(found[-2]),
            hint="do batches follow from position alone, and is every operator deterministic?",
        )
    return int(found[-2].name)
