"""Names of free axes: equal names promise equal sizes, and what stands where a name is missing promises nothing."""

from __future__ import annotations

import re

_NO_NAME = re.compile(
    r"[-_?*.\s]*(-1|none|null|nil|unk|unknown|undefined|dyn|dynamic|free|any)?[-_?*.\s]*", re.IGNORECASE
)
"""What exporters write for an axis they know nothing of: `?`, `-1`, `None`, `unk__`, or nothing at all."""


def is_name(dim: int | str | None) -> bool:
    """Whether a dimension is the name of a free axis, and none of the signs for `unknown`, which all axes share."""
    return isinstance(dim, str) and not _NO_NAME.fullmatch(dim)


def own_name(tensor: str, axis: int) -> str:
    """What a free axis without a name is called: another name than that of any other axis."""
    return f"{tensor}_axis{axis}"


def named(tensor: str, axis: int, dim: int | str | None) -> int | str:
    """A dimension as it was given, or with a name of its own where it is free and has none."""
    if is_name(dim) or (isinstance(dim, int) and dim >= 0):
        assert dim is not None
        return dim
    return own_name(tensor, axis)
