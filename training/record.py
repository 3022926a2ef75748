"""Record of a model's calls since the last step of its optimizer, so that the step can be run again if it is skipped.

Inputs are kept by reference, and so are the gradients that come back to the outputs; both are dropped after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from demi.training.rng import RandomState
from demi.training.skips import Root
from demi.training.state import Buffers
from demi.training.task import tensors_of

MOST_CALLS = 64
"""Calls that are kept for one step; of a loop that never steps none must pile up."""


@dataclass(slots=True)
class Call:
    """One call of the model, or of a child that was called by itself."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: RandomState
    autocast: Callable[[], AbstractContextManager[Any]]
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """Gradients that came back to its outputs, scaled as the loss was, by the number of the output."""


class Recorder:
    """Hooks on a model and its children that keep the calls of a step; the outermost one counts."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.calls: list[Call] = []
        self.buffers: Buffers | None = None
        self.is_off = False
        self._depth = 0
        self._handles: list[RemovableHandle] = []
        for module in (model, *model.children()):
            self._handles += [
                module.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
            ]

    def clear(self) -> None:
        """Forget the calls: the step is over."""
        self.calls, self.buffers, self._depth = [], None, 0

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self.clear()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self.is_off or self._depth > 1 or not module.training or not torch.is_grad_enabled():
            return
        if self.buffers is None:
            self.buffers = Buffers(self._model)
        if len(self.calls) < MOST_CALLS:
            kept = detached(args), detached(kwargs)
            self.calls.append(Call(module, *kept, RandomState.capture(), _autocast(args, kwargs)))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self.is_off or self._depth or not self.calls or self.calls[-1].module is not module:
            return
        call = self.calls[-1]
        for number, tensor in enumerate(roots_of(output)):

            def keep(gradient: Tensor, number: int = number, call: Call = call) -> None:
                call.gradients[number] = gradient.detach()

            tensor.register_hook(keep)  # type: ignore[no-untyped-call]


def detached(value: Any, computed: torch.dtype | None = None) -> Any:
    """Return a value whose tensors are cut off from what they were computed from; a gradient may still reach them.

    Those that were computed with weights get the type `computed`, where one is given.
    """
    if isinstance(value, Tensor):
        found = value.detach()
        return found.to(computed or found.dtype).requires_grad_() if value.requires_grad else found
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: detached(each, computed) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(detached(each, computed) for each in value)
    return value


def _data(value: Any) -> Any:
    """Return a value without its tensors that a gradient is wanted of."""
    if isinstance(value, Tensor):
        return None if value.requires_grad else value
    if isinstance(value, Mapping):
        return {key: _data(each) for key, each in value.items()}
    return [_data(each) for each in value] if isinstance(value, list | tuple) else value


def roots_of(output: Any) -> list[Tensor]:
    """Return the tensors of an output that a backward pass may begin at; of one that has a loss, the loss alone."""
    loss = output.get("loss") if isinstance(output, Mapping) else None
    found: Iterable[Tensor] = [loss] if isinstance(loss, Tensor) else (tensor for _, tensor in tensors_of(output))
    return [tensor for tensor in found if tensor.requires_grad]


def _autocast(args: Any, kwargs: Any) -> Callable[[], AbstractContextManager[Any]]:
    """Return what opens autocast as it is now on the device of the inputs."""
    device = next((t.device.type for _, t in tensors_of([*args, kwargs])), "cpu")
    if not torch.is_autocast_enabled(device):
        return nullcontext
    dtype = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype)


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step of anybody's loop, to be run again by `find_cause`."""

    model: nn.Module
    calls: list[Call]
    buffers: Buffers | None
    scale: float
    loss_is_finite: bool
    together: bool

    @property
    def inputs(self) -> list[Any]:
        """The arguments of each call, without those that the loop has computed with weights before."""
        return [_data([*call.args, call.kwargs]) for call in self.calls]

    @property
    def chained(self) -> bool:
        """A loop may call parts of its model one after the other."""
        return len(self.calls) > 1

    def rewind(self) -> None:
        """Put the buffers where the step began, and drop the gradients."""
        if self.buffers is not None:
            self.buffers.restore()
        self.model.zero_grad(set_to_none=True)

    def forward(self, index: int, scale: float, *, half: bool = True) -> Root:
        """Run a call again with its random numbers; its outputs have the gradients that came back then, at `scale`."""
        call = self.calls[index]
        call.random.restore()
        widest = None if half else torch.float32  # without autocast, what it has made half before would not fit
        args, kwargs = detached(call.args, widest), detached(call.kwargs, widest)
        with call.autocast() if half else nullcontext():
            output = call.module(*args, **kwargs)
        if not torch.is_grad_enabled():
            return Root([tensor for _, tensor in tensors_of(output)])
        outputs = roots_of(output)
        pairs = [(tensor, call.gradients[number]) for number, tensor in enumerate(outputs) if number in call.gradients]
        factor = scale / self.scale
        return Root([tensor for tensor, _ in pairs], [gradient * factor for _, gradient in pairs], self.loss_is_finite)
