"""Defaults: turn initializers that are also listed as inputs into constants.

Before IR version 4 every initializer had to be listed as an input and was still a constant; since then callers may
override a listed one. Requests to a bundle never do: these are weights, which may be half like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

IR_WITH_PLAIN_INITIALIZERS = 4
"""From this IR version on an initializer need not be a graph input."""


@dataclass(frozen=True, slots=True)
class WithoutDefaults:
    """A model whose weights are not inputs, and sentences on what that changes for callers."""

    model: ir.Model
    notes: tuple[str, ...] = ()


def defaults_to_constants(model: ir.Model) -> WithoutDefaults:
    """Return the model with inputs that have a default turned into constants; `model` is not changed."""
    names = [value.name for value in model.graph.inputs if value.is_initializer()]
    if not names:
        return WithoutDefaults(model)
    copy = model.clone()
    drop_defaults(copy)
    if model.ir_version < IR_WITH_PLAIN_INITIALIZERS or all(_is_weight(model, name or "") for name in names):
        return WithoutDefaults(copy)
    shown = ", ".join(f"`{name}`" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return WithoutDefaults(copy, (f"{shown}: inputs with a default in the source, constants in the bundle",))


def drop_defaults(model: ir.Model) -> bool:
    """Remove inputs that are initializers from the list of inputs, in place; return whether there were any."""
    plain = [value for value in model.graph.inputs if not value.is_initializer()]
    changed = len(plain) != len(model.graph.inputs)
    if changed:
        held = [value for value in model.graph.inputs if value.is_initializer()]
        model.graph.inputs.clear()
        model.graph.inputs.extend(plain)
        for value in held:
            model.graph.initializers[value.name or ""] = value
    return changed


def _is_weight(model: ir.Model, name: str) -> bool:
    """Return whether a default is a tensor of many numbers, which no caller is meant to pass."""
    tensor = model.graph.initializers[name].const_value
    return tensor is not None and tensor.size > 1
