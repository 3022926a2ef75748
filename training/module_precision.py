"""A precision for each module: those that a plan keeps in FP32 run without autocast.

A plan decides about a module's own code. A module below it that has a decision of its own follows that, and one without
follows the module above.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from demi.errors import InputError
from demi.plan import Decision, Precision, PrecisionPlan, Reason, make_plan

ROOT = "the model"
"""The name of the outermost module in a plan and in messages."""


def apply_plan(model: nn.Module, plan: PrecisionPlan, device: torch.device, half: torch.dtype) -> list[RemovableHandle]:
    """Let a model's modules run in a plan's precisions wherever autocast is on; return handles that undo it.

    A module in FP32 gets FP32 inputs; its half children return FP32 to it. Raises InputError for a module that is not
    there.
    """
    modules = by_name(model)
    unknown = [name for name in plan.decisions if name not in modules]
    if unknown:
        raise InputError(f"the model has no module `{unknown[0]}`", where="the plan", hint="measure the plan again")
    outer: list[bool] = []
    handles = []
    for name, decision in plan.decisions.items():
        region = _Region(device.type, half if decision.is_half else None, outer)
        handles += [
            modules[name].register_forward_pre_hook(region.enter, with_kwargs=True),
            modules[name].register_forward_hook(region.leave, always_call=True),
        ]
    return handles


@contextmanager
def applied(model: nn.Module, plan: PrecisionPlan, device: torch.device, half: torch.dtype) -> Iterator[None]:
    """Apply a plan inside this block."""
    handles = apply_plan(model, plan, device, half)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def without_plan(model: nn.Module) -> nn.Module:
    """Take a plan off a copy of a model, and return the copy."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), _Region)]:
                del hooks[key]
    return model


def by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules by their paths."""
    return {name or ROOT: module for name, module in model.named_modules()}


def pinned(model: nn.Module, patterns: Iterable[str]) -> dict[str, str]:
    """Return the modules that patterns name, each with its pattern: a path, a glob of paths, or the name of a class.

    Raises InputError for a pattern that names none.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        matching = [
            name
            for name, module in by_name(model).items()
            if fnmatch.fnmatchcase(name, pattern) or type(module).__name__ == pattern
        ]
        if not matching:
            some = ", ".join(list(by_name(model))[1:6])
            raise InputError(
                f"no module is named `{pattern}`",
                where="--keep-fp32",
                hint=f"there are {some} and others; * is allowed",
            )
        found |= dict.fromkeys(matching, pattern)
    return found


def plan_of_pins(model: nn.Module, precision: str, pins: dict[str, str]) -> PrecisionPlan:
    """Return the plan that keeps these modules in FP32, and decides nothing else."""
    modules = by_name(model)
    return make_plan(precision, [pin(name, modules[name], pattern) for name, pattern in pins.items()])


def pin(name: str, module: nn.Module, pattern: str) -> Decision:
    """Return the decision for a module that the user keeps in FP32."""
    return Decision(name, type(module).__name__, Precision.SINGLE, Reason.PINNED, f"--keep-fp32 {pattern}")


class _Region:
    """Hooks around one module. `outer` is shared by all of a model: whether autocast was on around each open FP32 region."""

    def __init__(self, device: str, half: torch.dtype | None, outer: list[bool]) -> None:
        self._device, self._half, self._outer = device, half, outer
        self._open: list[tuple[AbstractContextManager[Any], bool]] = []

    def enter(self, _: nn.Module, args: Any, kwargs: Any) -> Any:
        """Switch autocast for the module, and widen the inputs of one in FP32."""
        if self._half is None:
            self._outer.append(torch.is_autocast_enabled(self._device))
            self._push(torch.autocast(self._device, enabled=False), widen=False)
            return _single(args), _single(kwargs)
        # Without autocast around the whole model, in an evaluation say, nothing is half.
        inside = bool(self._outer)
        on = self._outer[-1] if inside else torch.is_autocast_enabled(self._device)
        self._push(torch.autocast(self._device, self._half, enabled=on), widen=inside)
        return None

    def leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Switch autocast back; what a half module returns to one in FP32 becomes FP32."""
        if not self._open:
            return None
        context, widen = self._open.pop()
        context.__exit__(None, None, None)
        if self._half is None:
            self._outer.pop()
        return _single(output) if widen else None

    def _push(self, context: AbstractContextManager[Any], *, widen: bool) -> None:
        context.__enter__()
        self._open.append((context, widen))


def _single(value: Any) -> Any:
    """Return a value with its half tensors in FP32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, dict):
        return (
            type(value)({key: _single(each) for key, each in value.items()}) if type(value) is dict else _mapped(value)
        )
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_single(each) for each in value))
    if type(value) in (list, tuple):
        return type(value)(_single(each) for each in value)
    return value


def _mapped(value: Any) -> Any:
    """Change a mapping of a class of its own, such as transformers' outputs, in place."""
    for key in list(value):
        value[key] = _single(value[key])
    return value


def in_order(names: Sequence[str], model: nn.Module) -> list[str]:
    """Return names of modules in the order in which the model has them."""
    place = {name: number for number, name in enumerate(by_name(model))}
    return sorted(names, key=lambda name: place[name])
