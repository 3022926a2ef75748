"""What a Python API takes, looked at before anything is done with it: mistakes are told in the caller's words."""

from __future__ import annotations

from typing import Any

from demi.errors import InputError


def require(value: Any, kind: type | tuple[type, ...], name: str, wanted: str) -> None:
    """Raise InputError unless the argument called `name` is of that kind; `wanted` says it in words."""
    if not isinstance(value, kind):
        raise InputError(f"`{name}` is a {type(value).__name__}, not {wanted}", where=name)
