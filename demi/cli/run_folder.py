"""The folder of a training run as the source of `demi export`: its model, its samples, and what training says of ranges."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

RUN_MODEL, RUN_SAMPLES, RUN_RANGES = "model.pt2", "samples", "ranges.json"
"""Names of the files of `demi train --save-model` in a run's folder; `demi.training` has them, too, but imports PyTorch."""

MARGIN = 1.5
"""Factor by which other inputs may be larger than the samples before the plan's margins are used up."""
MOST_NAMED = 3


class _Module(msgspec.Struct):
    """A module in `ranges.json`: its largest output in the trained model, and in training where that was watched."""

    largest: float
    in_training: float = 0.0
    at_step: int = 0


def take_run(args: argparse.Namespace) -> Path | None:
    """Replace the folder of a training run by its model, and take its samples where none were given; return the folder."""
    run: Path | None = args.model
    if run is None or not (run / RUN_MODEL).is_file():
        return None
    args.output = args.output or Path("models") / run.resolve().name
    args.sample = args.sample or (str(run / RUN_SAMPLES) if (run / RUN_SAMPLES).is_dir() else None)
    args.model = run / RUN_MODEL
    return run


def wider_in_training(run: Path) -> Iterator[str]:
    """Yield a note where modules were wider in training than on all batches of the trained model that were looked at.

    By more than the margin that a plan keeps: then inputs like those may overflow where the samples do not.
    """
    try:
        modules = msgspec.json.decode((run / RUN_RANGES).read_bytes(), type=dict[str, _Module])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    wider = {
        name: each.in_training / each.largest
        for name, each in modules.items()
        if each.largest > 0 and math.isfinite(each.in_training) and each.in_training > MARGIN * each.largest
    }
    if not wider:
        return
    first = sorted(wider, key=lambda name: -wider[name])[:MOST_NAMED]
    named = ", ".join(f"`{name}` ({wider[name]:.1f} times, at step {modules[name].at_step})" for name in first)
    more = f" and {len(wider) - len(first)} more" if len(wider) > len(first) else ""
    yield (
        f"in training, outputs were larger than on the samples: {named}{more}; if inputs like those come back, add them "
        "with --sample"
    )
