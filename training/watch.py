"""Instruments for anybody's training loop: a guard, the reason of every skipped step, and a log.

    watch = demi.watch(model, optimizer, scaler=scaler, log="runs/mine")

The loop stays as it is. A step whose gradients are not finite changes no weight, in any precision; `watch.last` and
the log have the cause. What comes after the optimizer in the loop, a learning rate schedule say, is not held back.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from demi.errors import DivergedError, InputError
from demi.training import ranks
from demi.training.logs import Logs, Sink
from demi.training.record import RecordedStep, Recorder
from demi.training.rng import RandomState
from demi.training.skips import Skip, find_cause
from demi.training.step import gradient_norm

HALF = (torch.float16,)
"""Weights in these types with a loss scaler are a mistake: PyTorch refuses to unscale their gradients, but late."""


class Watch:
    """The instruments of one model and one optimizer, until `close` or the end of a `with`. Belongs to one thread."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        scaler: GradScaler | None = None,
        log: str | os.PathLike[str] | None = None,
        sinks: Sequence[Sink] = (),
        note: Callable[[str], None] | None = None,
        max_skips: int = 25,
    ) -> None:
        """Attach to a model and its optimizer.

        `scaler` is the loop's GradScaler, where it has one. `log` is a folder for log.jsonl; `sinks` take numbers as
        well: anything with `log(values, step)`. `note` gets a line for each skip but the loss scaler's normal work, and
        is a warning of the logger `demi` where left out. Raises InputError for FP16 weights with a scaler.
        """
        self._model = plain(model)
        self._optimizer, self._scaler, self._max_skips = optimizer, scaler, max_skips
        if scaler is not None and any(p.dtype in HALF for p in self._parameters()):
            raise InputError(
                "the weights are FP16 already, and a loss scaler needs FP32 weights",
                where="model",
                hint="leave out .half(): autocast computes in half with FP32 weights",
            )
        self._note = note or logging.getLogger("demi").warning
        self.steps, self.updates, self.skipped_in_a_row = 0, 0, 0
        self.skipped: dict[str, int] = {}
        """Skipped steps by cause."""
        self.last: Skip | None = None
        """The cause of the last skip."""
        self._losses: list[Tensor] = []
        self._seen = False
        if log is not None:
            Path(log).mkdir(parents=True, exist_ok=True)
        self._logs = Logs(Path(log), sinks) if log is not None and ranks.here().is_first else None
        self._recorder = Recorder(self._model)
        self._handle = optimizer.register_step_pre_hook(self._before_step)
        self._restore_scaler = self._attach_scaler()

    def close(self) -> None:
        """Take everything off the model, the optimizer and the scaler."""
        self._recorder.close()
        self._handle.remove()
        self._restore_scaler()
        if self._logs is not None:
            self._logs.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _attach_scaler(self) -> Callable[[], None]:
        """See each scaled loss, and each step that the scaler itself leaves out; return what undoes that."""
        scaler = self._scaler
        if scaler is None or not scaler.is_enabled():
            return lambda: None
        step, scale = scaler.step, scaler.scale

        def watched_scale(outputs: Any) -> Any:
            if isinstance(outputs, Tensor):
                self._losses.append(outputs.detach())
            return scale(outputs)

        def watched_step(optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
            self._seen = False
            done = step(optimizer, *args, **kwargs)
            if not self._seen and optimizer is self._optimizer:
                self._skip(math.nan)
            return done

        scaler.step, scaler.scale = watched_step, watched_scale  # type: ignore[method-assign]

        def undo() -> None:
            for name in ("step", "scale"):
                scaler.__dict__.pop(name, None)

        return undo

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look at the gradients before an update; where a closure makes them, after it."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._look()
            return None

        def watched() -> Any:
            loss = closure()
            self._look()
            return loss

        if "closure" in kwargs:
            return args, kwargs | {"closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def _look(self) -> None:
        """Let an update pass where all gradients are finite on every rank, else take the gradients away."""
        self._seen = True
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        norm = gradient_norm(gradients)
        device = gradients[0].device if gradients else torch.device("cpu")
        if not ranks.all_true(math.isfinite(norm), device):
            self._skip(norm)
            return
        self.updates += 1
        self.skipped_in_a_row = 0
        self._end_step(norm, None)

    def _skip(self, norm: float) -> None:
        """Find the cause, and leave the optimizer nothing to do: it passes over parameters without a gradient."""
        skip = self._cause()
        for parameter in self._parameters():
            parameter.grad = None
        self.last = skip
        self.skipped[skip.cause] = self.skipped.get(skip.cause, 0) + 1
        self.skipped_in_a_row += 1
        self._end_step(norm, skip)
        if not skip.is_benign:
            self._note(f"step {self.steps} was skipped: {skip}")
        if self.skipped_in_a_row >= self._max_skips:
            raise DivergedError(
                f"{self.skipped_in_a_row} steps in a row were skipped, the last one for this cause: {skip}",
                where=f"step {self.steps}",
                hint="a lower learning rate, bf16 or fp32 may hold",
            )

    def _cause(self) -> Skip:
        own = {id(p) for p in self._parameters()}
        others = [(p, p.grad) for p in self._model.parameters() if id(p) not in own]
        after, recorder = RandomState.capture(), self._recorder
        recorder.is_off = True
        loss_is_finite = bool(self._losses) and all(bool(torch.isfinite(loss).all()) for loss in self._losses)
        together = any(hasattr(p, "to_local") for p in self._model.parameters())
        step = RecordedStep(self._model, recorder.calls, recorder.buffers, self._scale(), loss_is_finite, together)
        try:
            with torch.enable_grad():
                return find_cause(step)
        finally:
            recorder.is_off = False
            after.restore()
            for parameter, gradient in others:
                parameter.grad = gradient

    def _scale(self) -> float:
        return float(self._scaler.get_scale()) if self._scaler is not None else 1.0

    def _end_step(self, norm: float, skip: Skip | None) -> None:
        self.steps += 1
        if self._logs is not None:
            self._logs.log(self._line(norm, skip), self.steps)
        self._recorder.clear()
        self._losses = []

    def _line(self, norm: float, skip: Skip | None) -> Mapping[str, float | str | None]:
        losses = [float(loss.mean()) for loss in self._losses]
        return {
            "loss": math.fsum(losses) if losses else None,
            "lr": float(self._optimizer.param_groups[0]["lr"]),
            "precision/gradient_norm": norm if math.isfinite(norm) else None,
            "precision/scale": self._scale(),
            "precision/skipped": sum(self.skipped.values()),
            "skip": str(skip) if skip else None,
        }


def watch(model: nn.Module, optimizer: Optimizer, **options: Any) -> Watch:
    """Attach instruments to a training loop; the options are those of `Watch`."""
    return Watch(model, optimizer, **options)


def plain(model: nn.Module) -> nn.Module:
    """Return the user's model, without DDP or torch.compile around it."""
    found: Any = model
    while isinstance(found, nn.parallel.DistributedDataParallel) or hasattr(found, "_orig_mod"):
        found = found.module if isinstance(found, nn.parallel.DistributedDataParallel) else found._orig_mod
    return cast(nn.Module, found)
