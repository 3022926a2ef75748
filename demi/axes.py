"""Names of free axes: equal names mean equal sizes, and placeholders for unknown axes are replaced by unique names."""

from __future__ import annotations

import re

_NO_NAME = re.compile(
    r"[-_?*.\s]*(-1|none|null|nil|unk|unknown|undefined|dyn|dynamic|free|any)?[-_?*.\s]*", re.IGNORECASE
)
"""Placeholders that exporters write for an unknown axis: `?`, `-1`, `None`, `unk__`, or an empty string."""


def is_name(dim: int | str | None) -> bool:
    """Return whether a dimension is the name of a free axis, and not a placeholder that unrelated axes share."""
    return isinstance(dim, str) and not _NO_NAME.fullmatch(dim)


def own_name(tensor: str, axis: int) -> str:
    """Return a unique name for a free axis that has none."""
    return f"{tensor}_axis{axis}"


def named(tensor: str, axis: int, dim: int | str | None) -> int | str:
    """Return the dimension, or a unique name where it is free and unnamed."""
    if is_name(dim) or (isinstance(dim, int) and dim >= 0):
        assert dim is not None
        return dim
    return own_name(tensor, axis)
