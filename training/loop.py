"""Training, the whole story in `train`."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from demi.errors import InputError, OverBudgetError
from demi.progress import Report, Step, silent
from demi.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint, weights_digest
from demi.training.logs import Logs, open_sinks
from demi.training.optimizer import LearningRate, make_optimizer
from demi.training.precision import choose_precision
from demi.training.request import Trained, TrainRequest
from demi.training.rng import seed_everything
from demi.training.skips import Skip
from demi.training.state import TrainState, make_scaler
from demi.training.step import Outcome, take_step
from demi.training.task import Batch, Position, evaluate, to_device

AGAIN_S = 1.0
"""A signal this long after the first one is meant as a second."""


class DivergedError(OverBudgetError):
    """A run that skipped too many steps in a row: nothing is learned any more."""


def train(request: TrainRequest, step: Step = silent, note: Callable[[str], None] | None = None) -> Trained:
    """Train a task, and return what came out. Checkpoints, the log and the results lie in the run's folder.

    `note` gets a line for each new cause of a skip but the loss scaler's normal work, and for each evaluation; the log has
    every one. Ctrl-C
    and SIGTERM end the run after the current step, with a checkpoint. Raises InputError for a request that cannot be
    carried out, and DivergedError after `max_skips` skipped steps in a row.
    """
    say = note or (lambda _: None)
    with step("preparing the model"):
        state = prepare(request)
    began, seconds, last = state.counters.step, 0.0, math.nan
    known: set[tuple[str, str]] = set()
    with (
        Logs(request.folder, open_sinks(request.logs, request.folder), step=began) as logs,
        _interruptible() as interrupted,
        step(f"training in {state.precision.name}") as report,
    ):
        batches = _batches(request, state)
        while state.counters.step < request.steps and not interrupted.is_set():
            taken = [to_device(batch, state.device) for batch in itertools.islice(batches, request.accumulate)]
            if len(taken) < request.accumulate:
                say(f"the data ended after {state.counters.step} steps")
                break
            started = time.perf_counter()
            outcome = take_step(state, taken, request.clip)
            seconds += time.perf_counter() - started
            logs.log(_line(outcome, state), state.counters.step)
            last = last if outcome.skip else outcome.loss
            _heed(outcome.skip, request, state, say, known)
            _when_due(request, state, logs, say)
            _report(report, request, state, began)
        save_checkpoint(request.folder, state, request.keep)
        metrics = _evaluate(request, state)
        if metrics:
            logs.log({f"evaluation/{name}": value for name, value in metrics.items()}, state.counters.step)
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


def prepare(request: TrainRequest) -> TrainState:
    """Return the state that a run begins with, or goes on from; InputError where its folder does not allow that."""
    device = _device(request.device)
    precision = choose_precision(request.precision, device)
    saved = _saved(request)
    request.folder.mkdir(parents=True, exist_ok=True)
    seed_everything(request.seed)
    model = request.task.model().to(device)
    if any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters() if p.is_floating_point()):
        raise InputError(
            "the model's weights are half already, so that small updates would be lost",
            where="TASK",
            hint="return it in FP32 (without .half()); --precision bf16-pure converts it and keeps what is lost",
        )
    model.to(precision.weights).train()
    optimizer = make_optimizer(request.task, model, request.optimizer, precision)
    rate = LearningRate(optimizer, request.optimizer, request.steps)
    scaler = make_scaler(precision, device, request.init_scale, request.growth_interval)
    state = TrainState(request.task, model, optimizer, rate, scaler, precision, device)
    if saved is not None:
        load_checkpoint(saved, state)
    return state


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device `{name}` cannot be used: {str(error).splitlines()[0]}",
            where="--device",
            hint="use cpu or cuda",
        ) from error
    return device


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


def _batches(request: TrainRequest, state: TrainState) -> Iterator[Batch]:
    return iter(request.task.batches(Position(request.seed, state.counters.batches)))


def _evaluate(request: TrainRequest, state: TrainState) -> dict[str, float]:
    """Return the task's metrics, computed in FP32 where the weights are, whatever they were trained in."""
    in_half = state.precision.weights is not torch.float32
    with state.precision.autocast(state.device) if in_half else contextlib.nullcontext():
        return evaluate(request.task, state.model)


def _line(outcome: Outcome, state: TrainState) -> dict[str, float | str | None]:
    """Return what the log says of a step."""
    return {
        "loss": outcome.loss,
        "lr": outcome.lr,
        "precision/gradient_norm": outcome.gradient_norm,
        "precision/scale": outcome.scale,
        "precision/skipped": state.counters.step - state.counters.updates,
        "skip": str(outcome.skip) if outcome.skip else None,
    }


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


def _when_due(request: TrainRequest, state: TrainState, logs: Logs, say: Callable[[str], None]) -> None:
    """Save and evaluate, every so many steps."""
    at = state.counters.step
    if at % request.save_every == 0 and at < request.steps:
        save_checkpoint(request.folder, state, request.keep)
    if request.evaluate_every and at % request.evaluate_every == 0 and at < request.steps:
        metrics = _evaluate(request, state)
        logs.log({f"evaluation/{name}": value for name, value in metrics.items()}, at)
        say(f"step {at}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


def _report(report: Report | None, request: TrainRequest, state: TrainState, began: int) -> None:
    if report is not None:
        report((state.counters.step - began) / max(1, request.steps - began))


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; a second one, `AGAIN_S` later, does what it always did.

    One Ctrl-C may arrive twice: from the terminal, and forwarded by a supervisor or a launcher.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    first = math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        first = min(first, time.monotonic())
        event.set()
        handler = former[signal.Signals(number)]
        if time.monotonic() - first >= AGAIN_S and callable(handler):
            handler(number, frame)

    for number in former:
        signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
