"""Repair by fine-tuning: a trained model whose tensors leave FP16's range, trained until they fit, with the same answers.

For what exact rescaling cannot fit, because the values pass an exponential, a tanh or a product of two tensors. Labels
are not needed: the model learns from its own FP32 answers f0. With every tensor t of the model rounded to FP16,

    L = |f(x) - f0(x)|^2 / |f0(x)|^2  +  lambda * sum over t of mean relu(log2|t| - (15 - margin))^2

is minimized, and lambda doubles until every range fits. The range begins as wide as the model needs it, and narrows to
FP16's by half a bit whenever the answers are near f0's: a model whose answers are lost in overflow has no way back. Training
ends when all ranges fit, and the distance of the half model from FP32 is within the budget, on batches that it was not
trained on.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from demi.errors import InputError, OverBudgetError
from demi.progress import Report, Step, silent
from demi.training.batches import Batches
from demi.training.checkpoint import read_weights, save_checkpoint
from demi.training.half_forward import Ranges, floats, run_half
from demi.training.handover import hand_over, inputs_of
from demi.training.loop import prepare
from demi.training.request import TrainRequest
from demi.training.scaled_weights import ScaledWeights
from demi.training.state import TrainState
from demi.training.task import Task

HELD_OUT = 8
"""Batches that ranges and distance are measured on; training takes those after them."""
CHECK_EVERY = 20
PATIENCE = 3
"""Checks without a smaller distance after which the learning rate is halved, once all ranges fit."""
NARROWER = 0.5
"""Bits by which the range narrows at a check where the answers are near."""
NEAR = 0.1
"""Relative L2 of the answers, in training, within which the range narrows."""
SELDOM = 0.25
"""Share of the steps between checks that may have a value beyond the range: rare ones come back as long as it trains."""
SETTLED = 0.25
"""Share of the learning rate from which on single weights are trained, beside factors and shifts of whole tensors."""
TOP = 15.0
"""FP16 ends just below 2^16; a margin of one bit lets values reach 2^14."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class RepairRequest:
    """Request for a repair."""

    task: Task
    folder: Path
    run: Path | None = None
    """A run whose last checkpoint has the weights; else the task's `model` returns them."""
    steps: int = 2000
    """Most steps."""
    budget: float = 1e-2
    """Relative L2 between the half model's answers and those in FP32 before."""
    margin: float = 1.0
    """Bits below 2^15 that ranges must stay."""
    lr: float = 0.1
    """Bits by which a tensor's factor moves in a step."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.margin < TOP:
            raise InputError(f"the margin is {self.margin} bits", where="--margin", hint="try 1")


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on the batches held out: its largest tensor, and its distance in half from the answers in FP32 before."""

    place: str
    """The function and the module that make the tensor that fits least, or the weight that it is."""
    largest: float
    limit: float
    """The largest magnitude that fits there."""
    distance: float

    @property
    def slack(self) -> float:
        """Bits by which the largest tensor is beyond its limit."""
        return max(0.0, math.log2(self.largest / self.limit)) if self.largest > 0 else 0.0

    def fits(self, request: RepairRequest) -> bool:
        """Return whether nothing is left to repair."""
        return self.largest <= self.limit and self.distance <= request.budget

    def __str__(self) -> str:
        return f"{self.place} reaches {self.largest:,.6g}, and {self.limit:,.6g} fits; distance {self.distance:.2g}"


@dataclass(frozen=True, slots=True)
class Repaired:
    """Result of a repair."""

    folder: Path
    steps: int
    before: Measured
    after: Measured


def repair(request: RepairRequest, step: Step = silent, note: Callable[[str], None] | None = None) -> Repaired:
    """Fine-tune a task's trained model until its ranges fit FP16, and write it as `demi train --save-model` does.

    `note` gets a line at each check. A model that fits already is not changed. Raises InputError where the task or the
    folder does not allow it, or a tensor that no weight can change is too large, and OverBudgetError where `steps` were
    not enough; then nothing is written.
    """
    training = TrainRequest(request.task, request.steps, request.folder, "fp32", seed=request.seed)
    with _nothing_left(request.folder):
        with step("preparing the model"):
            state = prepare(training)
            if request.run is not None:
                _load(request.run, state.model)
            model, weights = state.model.eval(), ScaledWeights(state.model)
            batches = _all_inputs(training, state)
            held_out = list(itertools.islice(batches, HELD_OUT))
            first = now = _measure(model, weights, held_out, request)
        with step("fitting ranges into FP16") as report:
            for taken in () if first.fits(request) else _train(model, weights, batches, request, first.slack, report):
                now, state.counters.step = _measure(model, weights, held_out, request), taken
                if note is not None:
                    note(f"step {taken}: {now}")
                if now.fits(request):
                    break
        if not now.fits(request):
            raise OverBudgetError(
                f"{request.steps} steps were not enough: {now}, and the budget is {request.budget:g}",
                where=str(request.folder),
                hint="try more --steps, another --lr or a larger --budget, or keep that module in FP32",
            )
        with step("writing the model"):
            weights.fold()
            state.counters.batches = HELD_OUT + state.counters.step
            save_checkpoint(training, state)
            hand_over(training, state)
    return Repaired(request.folder, state.counters.step, first, now)


def _train(
    model: nn.Module,
    weights: ScaledWeights,
    batches: Iterator[Inputs],
    request: RepairRequest,
    slack: float,
    report: Report | None,
) -> Iterator[int]:
    """Take steps, and yield their number whenever it is time to look whether the model fits.

    `slack` is the number of bits by which the range is wider than FP16's to begin with.
    """
    optimizer = torch.optim.Adam(weights.groups(request.lr))
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups[1:] if slack else ():
        group["lr"] = 0.0  # factors and shifts alone at first: single weights would lose the answers
    slower = ReduceLROnPlateau(optimizer, factor=0.5, patience=PATIENCE)
    penalty, beyond, distances = 1.0, 0, 0.0
    for number in range(1, request.steps + 1):
        inputs = next(batches)
        outputs, mode = run_half(model, weights, inputs, TOP - request.margin, slack)
        excess = torch.stack(mode.excess).sum() if mode.excess else torch.zeros(())
        distance = distance_squared(outputs, _answers(model, inputs))
        loss = distance + penalty * excess
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        beyond += bool(mode.excess)
        distances += float(distance.detach())
        if report is not None:
            report(number / request.steps)
        if number % CHECK_EVERY == 0 or number == request.steps:
            is_near = distances <= NEAR**2 * CHECK_EVERY
            if slack and is_near:
                slack = max(0.0, slack - NARROWER)
            elif not slack and beyond <= SELDOM * CHECK_EVERY:
                slower.step(distances)
                share = optimizer.param_groups[0]["lr"] / rates[0]
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share if share <= SETTLED else group["lr"]
            elif not slack:
                penalty *= 2.0
            beyond, distances = 0, 0.0
            yield number


@torch.no_grad()
def _answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return the FP32 answers before the repair: the model itself does not change until the end."""
    return floats(model(**inputs))


def distance_squared(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the largest |f - f0|^2 / |f0|^2 of all outputs."""
    shares = [(a - b).square().sum() / b.square().sum().clamp_min(1e-30) for a, b in zip(found, wanted, strict=True)]
    return torch.stack(shares).max()


def _measure(model: nn.Module, weights: ScaledWeights, batches: Sequence[Inputs], request: RepairRequest) -> Measured:
    """Return how a model does on the batches held out. Raises InputError for tensors that no weight can change."""
    ranges, distance = Ranges(), 0.0
    for inputs in batches:
        outputs, mode = run_half(model, weights, inputs, TOP - request.margin)
        ranges = ranges.merge(mode.ranges)
        squared = float(distance_squared(outputs, _answers(model, inputs)).detach())
        distance = max(distance, math.sqrt(squared) if math.isfinite(squared) else math.inf)
    for place, reached in ranges.fixed.items():
        if reached.share > 1:
            raise InputError(
                f"{place} reaches {reached.size:,.6g} from the inputs alone, and no weight can change that",
                where="TASK",
                hint="scale the inputs down, or keep this part in FP32",
            )
    place, reached = ranges.worst()
    return Measured(place, reached.size, reached.limit, distance)


def _all_inputs(training: TrainRequest, state: TrainState) -> Iterator[Inputs]:
    """Yield what the model is called with, batch by batch; data that ends begins anew after those held out."""
    for number in itertools.count():
        batches = Batches(training, state, HELD_OUT if number else 0)
        taken = batches.take(1)
        if not taken:
            raise InputError(
                f"there are not more than {HELD_OUT} batches", where="TASK", hint=f"{HELD_OUT} are held out: yield more"
            )
        while taken:
            yield inputs_of(state, state.model, taken[0])
            taken = batches.take(1)


def _load(run: Path, model: nn.Module) -> None:
    try:
        model.load_state_dict(read_weights(run))
    except RuntimeError as error:
        raise InputError(
            f"the run is of another model: {str(error).splitlines()[0]}",
            where=str(run),
            hint="use the task it was made with",
        ) from error


@contextlib.contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Remove a folder that an error leaves empty."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
