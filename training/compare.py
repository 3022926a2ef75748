"""Paired runs in FP32 and in half, and the verdict on them.

    runs/digits/seed-0/fp32, runs/digits/seed-0/bf16, ..., runs/digits/verdict-bf16.json

Runs that are done are not done again: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from demi.errors import DivergedError, InputError
from demi.progress import Step, silent
from demi.training.checkpoint import checkpoints
from demi.training.loop import train
from demi.training.request import TrainRequest
from demi.training.task import blaming, evaluate
from demi.training.verdict import Verdict, judge

LOSS = "loss"
LOWER = ("loss", "error", "perplexity", "mae", "mse", "rmse", "wer", "cer", "fid", "nll", "bits")
"""Words in names of metrics that are better when they are lower."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of a comparison: the metric of every pair, and the verdict."""

    precision: str
    metric: str
    higher_is_better: bool
    fp32: tuple[float, ...]
    half: tuple[float, ...]
    verdict: Verdict


def verdict_file(request: TrainRequest) -> Path:
    """Return the file with the verdict: each precision has its own, and the FP32 runs are the same."""
    return request.folder / f"verdict-{request.precision}.json"


class InterruptedRunError(Exception):
    """A run of a comparison was stopped; those before it, and its checkpoint, are saved."""


def compare(
    request: TrainRequest,
    pairs: int,
    metric: str,
    *,
    margin: float | None = None,
    higher_is_better: bool | None = None,
    step: Step = silent,
    note: Callable[[str], None] | None = None,
) -> Compared:
    """Train `pairs` seeds in FP32 and in the request's precision, and return the verdict on a metric.

    `metric` is one of the task's `evaluate`, or `loss` for that of the last update. Which direction is better follows
    from its name unless given. Raises InputError where there is nothing to compare, and InterruptedRunError.
    """
    if pairs < 2:
        raise InputError(f"{pairs} pair has no spread", where="--compare", hint="compare 2 pairs or more")
    if higher_is_better is None:
        higher_is_better = not set(re.split(r"[^a-z]+", metric.lower())) & set(LOWER)
    _require_metric(request, metric)
    single, half = [], []
    for seed in range(request.seed, request.seed + pairs):
        folder = request.folder / f"seed-{seed}"
        single.append(_value(_one(request, "fp32", seed, folder), metric, step, note))
        half.append(_value(_one(request, request.precision, seed, folder), metric, step, note))
        if note is not None:
            note(f"seed {seed}: {metric} {single[-1]:.6g} in fp32, {half[-1]:.6g} in {request.precision}")
    verdict = judge(single, half, margin=margin, higher_is_better=higher_is_better)
    done = Compared(request.precision, metric, higher_is_better, tuple(single), tuple(half), verdict)
    text = json.dumps(_plain(asdict(done)), indent=2)
    verdict_file(request).write_text(text + "\n")
    return done


def _require_metric(request: TrainRequest, metric: str) -> None:
    """Evaluate a new model, so that a metric that the task does not have is found before anything is trained."""
    if metric == LOSS:
        return
    with blaming("model"):
        model = request.task.model()
    _check_known(metric, [LOSS, *evaluate(request.task, model.to(request.device))])


def _check_known(metric: str, known: Collection[str]) -> None:
    if metric not in known:
        raise InputError(f"the task has no metric `{metric}`", where="--metric", hint=f"use {_list(known)}")


def _one(request: TrainRequest, precision: str, seed: int, folder: Path) -> TrainRequest:
    """Return one of the runs; one with a checkpoint goes on from there."""
    own = folder / precision
    if precision == "fp32":
        request = replace(request, plan=None, keep_fp32=())
    return replace(request, precision=precision, seed=seed, folder=own, resume=bool(checkpoints(own)))


def _value(request: TrainRequest, metric: str, step: Step, note: Callable[[str], None] | None) -> float:
    """Train, and return the metric; NaN for a run that diverged."""
    try:
        done = train(request, step, note)
    except DivergedError as error:
        if note is not None:
            note(f"{request.folder}: {error.message}")
        return math.nan
    if done.interrupted:
        raise InterruptedRunError
    values = {LOSS: done.loss} | done.metrics
    _check_known(metric, values)
    return values[metric]


def _list(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)


def _plain(value: object) -> object:
    """Return a value that JSON has: null for NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
