"""Argument checks for the Python API."""

from __future__ import annotations

from typing import Any

from demi.errors import InputError


def require(value: Any, kind: type | tuple[type, ...], name: str, wanted: str) -> None:
    """Raise InputError unless the argument called `name` has the type `kind`, which `wanted` describes."""
    if not isinstance(value, kind):
        raise InputError(f"`{name}` is a {type(value).__name__}, not {wanted}", where=name)
