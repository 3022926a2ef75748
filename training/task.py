"""A training task: the user's model, batches and loss, found by its name."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from demi.errors import DemiError, InputError
from demi.training.rng import RandomState
from demi.user_code import current_folder_importable

Batch = Any
"""Whatever the task's `batches` yields: a tensor, or tuples, lists and dicts of tensors."""


@dataclass(frozen=True, slots=True)
class Position:
    """Position of a run in its data."""

    seed: int
    """Of the order of the data."""
    batch: int
    """Batches that each rank has taken so far: the next one is number `batch`, counted from 0."""
    rank: int = 0
    world: int = 1
    """This process takes every `world`-th share of the data, the one of its `rank`."""


@runtime_checkable
class Task(Protocol):
    """Model, data and loss of a training run.

    `batches` must yield the same batches for the same position, in this process and in another: that is what makes
    `--resume` exact. Draw its order from a generator of its own, seeded by `position.seed`. It may end; the run then
    ends, too. Optional: `optimizer(parameters)` returns a torch.optim.Optimizer, and `evaluate(model)` a mapping of
    metric names to numbers.
    """

    def model(self) -> nn.Module:
        """Return a new model with FP32 weights; called after the global seed was set."""
        ...

    def batches(self, position: Position) -> Iterable[Batch]:
        """Return the batches from a position on."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scalar loss of one batch, a mean over its elements."""
        ...


_WANTED = "an object with model(), batches(position) and loss(model, batch), or a function that returns one"


def load_task(name: str) -> Task:
    """Return the task named `package.module:attribute`: an object, or a class or function that makes one.

    Modules of the current folder are found. Raises InputError where it cannot be imported or made, or is not a task.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise InputError(f"`{name}` is not a task's name", where="TASK", hint="write package.module:attribute")
    try:
        with current_folder_importable():
            found = getattr(importlib.import_module(module), attribute)
            task = found() if isinstance(found, type) or not isinstance(found, Task) else found
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"the task `{name}` cannot be made: {type(error).__name__}: {error}",
            where="TASK",
            hint=_way_out(error, module, attribute),
        ) from error
    return check_task(task, name)


def _way_out(error: Exception, module: str, attribute: str) -> str:
    """Return what to do about a task that cannot be made."""
    if module.endswith(".py"):
        return f"write {module.removesuffix('.py').replace('/', '.')}:{attribute}, without `.py`"
    if isinstance(error, ModuleNotFoundError) and error.name and not f"{module}.".startswith(f"{error.name}."):
        return f"install the package that brings `{error.name}`: the task imports it"
    if isinstance(error, ModuleNotFoundError):
        return "write package.module:attribute, in the folder that holds the package or the module"
    return f"give {_WANTED}"


@contextmanager
def blaming(method: str, hint: str = "mend the task; --verbose shows the traceback") -> Iterator[None]:
    """Turn an exception of one of the task's methods, which may be any, into an InputError with its line."""
    try:
        yield
    except (DemiError, StopIteration):
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(
            "the device's memory is full", where="TASK", hint="use smaller batches and --accumulate more of them"
        ) from error
    except Exception as error:
        raise InputError(
            f"the task's {method} raised {type(error).__name__}: {error}", where=line_of(error), hint=hint
        ) from error


def check_task(task: object, name: str = "task") -> Task:
    """Return `task` where it has what a task needs; InputError names the first method that is missing."""
    for method in ("model", "batches", "loss"):
        if not callable(getattr(task, method, None)):
            raise InputError(f"`{name}` has no method `{method}`", where="TASK", hint=f"give {_WANTED}")
    return cast(Task, task)


def call_loss(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """Return the task's loss of a batch.

    Raises InputError, with the line for an exception of the user's code, and where gradients are wanted also for a loss
    that has none.
    """
    with blaming("loss"):
        loss = task.loss(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(f"the task's loss is {what}", where="TASK", hint="return one number, a mean over the batch")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise InputError(
            "the task's loss has no gradient: it was not computed from the model's weights, or was cut off from them",
            where="TASK",
            hint="return it as it was computed: without .detach(), .item() and torch.no_grad(), and not as whole numbers",
        )
    return loss


def line_of(error: BaseException) -> str:
    """Return the file and line that an exception of the user's code was raised at: the last outside of packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename != __file__]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def evaluate(task: Task, model: nn.Module) -> dict[str, float]:
    """Return the task's metrics of a model in evaluation mode; empty where the task has no `evaluate`.

    It leaves no trace: random numbers that it draws are not missing from the training.
    """
    function = getattr(task, "evaluate", None)
    if function is None:
        return {}
    was, random = model.training, RandomState.capture()
    model.eval()
    try:
        with torch.no_grad(), blaming("evaluate", "mend the task, and go on with --resume: the weights are saved"):
            found = function(model)
    finally:
        model.train(was)
        random.restore()
    if not isinstance(found, Mapping):
        raise InputError(
            f"the task's evaluate returned a {type(found).__name__}", where="TASK", hint="return {metric name: number}"
        )
    return {str(metric): _metric(str(metric), value) for metric, value in found.items()}


def _metric(name: str, value: object) -> float:
    try:
        return float(cast(Any, value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the task's metric `{name}` is not one number: {error}",
            where="TASK",
            hint="return {metric name: number} from evaluate",
        ) from error


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on a device, whatever containers they are in."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def tensors_of(batch: Batch, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a batch with where each lies, such as `batch['x']` or `batch[0]`."""
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from tensors_of(value, f"{name}[{key!r}]")
    elif isinstance(batch, list | tuple):
        for index, value in enumerate(batch):
            yield from tensors_of(value, f"{name}[{index}]")
