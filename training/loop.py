"""Training, the whole story in `train`."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from demi.errors import DivergedError, InputError
from demi.progress import Report, Step, silent
from demi.training import ranks
from demi.training.batches import Batches
from demi.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint, weights_digest
from demi.training.handover import hand_over
from demi.training.inspection import FILE as INSPECTIONS
from demi.training.inspection import Inspection
from demi.training.interrupts import Stop, interruptible
from demi.training.logs import Logs, Unlogged, open_sinks
from demi.training.memory import FILE as MEMORY
from demi.training.memory import count_memory
from demi.training.optimizer import LearningRate, make_optimizer
from demi.training.parallel import share_out
from demi.training.precision import Precision, choose_precision, with_weights
from demi.training.request import Trained, TrainRequest
from demi.training.rng import seed_everything
from demi.training.running_ranges import RunningRanges
from demi.training.settle_plan import settle_plan
from demi.training.skips import Skip
from demi.training.state import TrainState, make_scaler
from demi.training.step import Outcome, take_step
from demi.training.task import Batch, blaming, evaluate


def train(request: TrainRequest, step: Step = silent, note: Callable[[str], None] | None = None) -> Trained:
    """Train a task, and return what came out. Checkpoints, the log and the results lie in the run's folder.

    `note` gets a line for each new cause of a skip but the loss scaler's normal work, and for each evaluation; the log
    has every one. Ctrl-C and SIGTERM end the run after the current step, with a checkpoint. With several ranks the
    first one writes and notes. Raises InputError for a request that cannot be carried out, a full disk included, and
    DivergedError after `max_skips` skipped steps in a row.
    """
    device = _device(request.device)
    with _writing(request.folder), ranks.group(request.shard, device) as place:
        say = note if note is not None and place.is_first else lambda _: None
        with step("preparing the model"):
            state = prepare(request, place, device)
        with state.arithmetic(), _open_logs(request, state) as logs, interruptible() as interrupted:
            settle_plan(request, state, step, say)
            with step(f"training in {state.precision.name}") as report:
                last, seconds = _run(request, state, logs, say, interrupted, report)
                save_checkpoint(request, state)
                metrics = _evaluate(request, state)
                if metrics:
                    logs.log({f"evaluation/{name}": value for name, value in metrics.items()}, state.counters.step)
                if request.save_model and state.ranks.is_first and not interrupted.is_set():
                    hand_over(request, state)
        return Trained(
            request.folder,
            state.precision.name,
            state.counters.step,
            state.counters.updates,
            dict(state.counters.skipped),
            last,
            metrics,
            seconds,
            weights_digest(state),
            interrupted.is_set() and state.counters.step < request.steps,
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn the system's refusal to write a run's files into an InputError that says how to go on."""
    try:
        yield
    except OSError as error:
        found = checkpoints(folder)
        begin = f"go on with --resume: step {int(found[-1].name)} is saved" if found else "start again"
        raise InputError(
            f"the run's files cannot be written: {error.strerror or error}",
            where=str(error.filename or folder),
            hint=f"free some space or choose another folder with -o, and {begin}",
        ) from error


def _run(
    request: TrainRequest,
    state: TrainState,
    logs: Logs | Unlogged,
    say: Callable[[str], None],
    interrupted: Stop,
    report: Report | None,
) -> tuple[float, float]:
    """Take the steps; return the loss of the last one that updated the weights, and the seconds spent in them."""
    began, seconds, last = state.counters.step, 0.0, math.nan
    known: set[tuple[str, str]] = set()
    counted = False
    batches = Batches(request, state)
    running = RunningRanges.open(request.folder, request.steps, state.counters.step)
    while state.counters.step < request.steps:
        taken = batches.take(request.accumulate)
        if len(taken) < request.accumulate:
            _require_batches(state, taken)
            say(f"the data ended after {state.counters.step} steps")
        if not ranks.all_true(len(taken) == request.accumulate and not interrupted.is_set(), state.device):
            break
        started = time.perf_counter()
        with _watching(running, request, state):
            outcome = take_step(state, taken, request.clip, inspect=_is_inspected(request, state))
        seconds += time.perf_counter() - started
        if request.memory and not outcome.skip and not counted:
            counted = True
            _count_memory(request, state, taken[0])
        if outcome.inspection is not None and state.ranks.is_first:
            _keep(outcome.inspection, request, state)
        logs.log(_line(outcome, state), state.counters.step)
        last = last if outcome.skip else outcome.loss
        _heed(outcome.skip, request, state, say, known)
        _when_due(request, state, logs, say, running)
        if report is not None:
            report((state.counters.step - began) / max(1, request.steps - began))
    _save_ranges(running, request, state)
    return last, seconds


def _require_batches(state: TrainState, taken: list[Batch]) -> None:
    """Raise InputError where the data ends before the first step."""
    if not state.counters.batches:
        raise InputError(
            f"the task's batches ended after {len(taken)}, before the first step",
            where="TASK",
            hint="let batches(position) yield more; an iterator that is used up is empty the second time",
        )


def _watching(running: RunningRanges, request: TrainRequest, state: TrainState) -> AbstractContextManager[object]:
    """Return the context of the next step, which notes ranges for the model that is to be handed over."""
    if not request.save_model or not state.ranks.is_first:
        return contextlib.nullcontext()
    return running.watching(state.plain_model, state.counters.step + 1, state.counters.batches)


def _save_ranges(running: RunningRanges, request: TrainRequest, state: TrainState) -> None:
    if request.save_model and state.ranks.is_first:
        running.save(request.folder)


def _is_inspected(request: TrainRequest, state: TrainState) -> bool:
    """Return whether the next step is compared with FP32."""
    if not request.inspect_every or state.sharded or state.precision.name == "fp32":
        return False
    return (state.counters.step + 1) % request.inspect_every == 0


def _keep(inspection: Inspection, request: TrainRequest, state: TrainState) -> None:
    """Add an inspection to those of the run; a step that is done again after a resume stands twice, the later counts."""
    with (request.folder / INSPECTIONS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": state.counters.step} | asdict(inspection)) + "\n")


def _count_memory(request: TrainRequest, state: TrainState, batch: Batch) -> None:
    """Write the memory of training, counted after the first update, which makes the optimizer's state."""
    report = count_memory(state, batch)
    if state.ranks.is_first:
        (request.folder / MEMORY).write_text(json.dumps(asdict(report), indent=2) + "\n")


def prepare(request: TrainRequest, place: ranks.Ranks | None = None, device: torch.device | None = None) -> TrainState:
    """Return the state that a run begins with, or goes on from; InputError where its folder does not allow that."""
    place, device = place or ranks.here(), device or _device(request.device)
    precision = choose_precision(request.precision, device)
    saved = _saved(request)
    ranks.barrier()  # every rank has looked before the first one writes
    request.folder.mkdir(parents=True, exist_ok=True)
    seed_everything(request.seed)
    model = _model(request, precision, device)
    model = share_out(model, request.shard, precision, device)
    optimizer = make_optimizer(request.task, model, request.optimizer, precision)
    rate = LearningRate(optimizer, request.optimizer, request.steps)
    scaler = make_scaler(precision, device, request.init_scale, request.growth_interval)
    state = TrainState(request.task, model, optimizer, rate, scaler, precision, device)
    state.ranks, state.sharded = place, request.shard == "fsdp"
    state.rehearsed = request.rehearse
    if place.rank:
        seed_everything(request.seed + 1_000_003 * place.rank)  # the same weights, dropout of its own
    if saved is not None:
        load_checkpoint(saved, request, state)
    return state


def _model(request: TrainRequest, precision: Precision, device: torch.device) -> nn.Module:
    """Return the task's model on its device, in the precision's type of weights."""
    with blaming("model"):
        model = request.task.model()
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the task's model is a {type(model).__name__}", where="TASK", hint="return a torch.nn.Module from model()"
        )
    model = model.to(device)
    if any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters() if p.is_floating_point()):
        raise InputError(
            "the model's weights are half already, so that small updates would be lost",
            where="TASK",
            hint="return it in FP32 (without .half()); --precision bf16-pure converts it and keeps what is lost",
        )
    return with_weights(model, precision.weights).train()


def _device(name: str) -> torch.device:
    try:
        device = ranks.local_device(torch.device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device `{name}` cannot be used: {str(error).splitlines()[0]}",
            where="--device",
            hint=f"use {_devices()}",
        ) from error
    return device


def _devices() -> str:
    """Return the devices that PyTorch can use here, for a hint."""
    count = torch.cuda.device_count()
    if count == 0:
        return "cpu: PyTorch finds no GPU here"
    return "cpu or " + ", ".join(f"cuda:{index}" for index in range(count))


def _saved(request: TrainRequest) -> Path | None:
    """Return the checkpoint to go on from; None for a new run."""
    found = checkpoints(request.folder)
    if request.resume and not found:
        raise InputError("there is no checkpoint to go on from", where=str(request.folder), hint="leave --resume out")
    if found and not request.resume:
        raise InputError(
            f"the folder holds a run of {int(found[-1].name)} steps",
            where=str(request.folder),
            hint="go on with --resume, or choose another folder with -o",
        )
    return found[-1] if found else None


def _open_logs(request: TrainRequest, state: TrainState) -> Logs | Unlogged:
    """Open the log, and what `--log` names, on the first rank; the others have none."""
    if not state.ranks.is_first:
        return Unlogged()
    began = state.counters.step
    return Logs(request.folder, open_sinks(request.logs, request.folder, step=began), step=began)


def _evaluate(request: TrainRequest, state: TrainState) -> dict[str, float]:
    """Return the task's metrics, computed in FP32 where the weights are, whatever they were trained in."""
    in_half = state.precision.weights is not torch.float32
    model = state.model if state.sharded else state.plain_model
    with state.autocast() if in_half else contextlib.nullcontext():
        return evaluate(request.task, model)


def _line(outcome: Outcome, state: TrainState) -> dict[str, float | str | None]:
    """Return what the log says of a step."""
    return {
        "loss": outcome.loss,
        "lr": outcome.lr,
        "precision/gradient_norm": outcome.gradient_norm,
        "precision/scale": outcome.scale,
        "precision/skipped": state.counters.step - state.counters.updates,
        "skip": str(outcome.skip) if outcome.skip else None,
    } | (outcome.inspection.numbers if outcome.inspection else {})


def _heed(
    skip: Skip | None,
    request: TrainRequest,
    state: TrainState,
    say: Callable[[str], None],
    known: set[tuple[str, str]],
) -> None:
    """Report a skip for a cause and module that are not `known` yet, and give up after too many in a row."""
    if skip is None:
        return
    if not skip.is_benign and (skip.cause, skip.module) not in known:
        known.add((skip.cause, skip.module))
        say(f"step {state.counters.step} was skipped: {skip}")
    if state.counters.skipped_in_a_row >= request.max_skips:
        raise DivergedError(
            f"{state.counters.skipped_in_a_row} steps in a row were skipped, the last one for this cause: {skip}",
            where=f"step {state.counters.step}",
            hint="checkpoints of earlier steps are kept; a lower learning rate, bf16 or fp32 may hold",
        )


def _when_due(
    request: TrainRequest, state: TrainState, logs: Logs | Unlogged, say: Callable[[str], None], running: RunningRanges
) -> None:
    """Save and evaluate, every so many steps."""
    at = state.counters.step
    if at % request.save_every == 0 and at < request.steps:
        _save_ranges(running, request, state)
        save_checkpoint(request, state)
    if request.evaluate_every and at % request.evaluate_every == 0 and at < request.steps:
        metrics = _evaluate(request, state)
        logs.log({f"evaluation/{name}": value for name, value in metrics.items()}, at)
        say(f"step {at}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
