"""Raw inputs from Python values: texts, and files of images and sounds as paths or bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demi.errors import InputError
from demi.processing.prepared import RawRows


def raw_rows(values: Mapping[str, Any], names: Sequence[str], *, truncate: bool = False) -> RawRows:
    """Return the rows of raw inputs by name: one value, or a sequence of them.

    Raises InputError for an input that is missing, unknown or of another kind, and for pairs of different number.
    """
    unknown = [name for name in values if name not in names]
    if unknown and len(unknown) == len(values):
        raise InputError(f"unknown input `{unknown[0]}`", hint=f"the model takes {', '.join(names)}")
    if unknown:
        raise InputError(
            f"`{unknown[0]}` is a tensor, and {', '.join(names)} is not",
            hint="give either raw inputs or tensors, not both",
        )
    if missing := [name for name in names if name not in values]:
        raise InputError(f"input `{missing[0]}` is missing", hint=f"the model's raw inputs are {', '.join(names)}")
    kind = names[0]
    read = _text if kind == "text" else _file
    found = [tuple(read(value, name) for value in _listed(values[name])) for name in names]
    if len({len(rows) for rows in found}) > 1:
        raise InputError(
            f"there are {' and '.join(f'{len(rows)} {name}' for rows, name in zip(found, names, strict=True))}"
        )
    return RawRows(found[0], tuple(map(str, found[1])) if len(found) > 1 else (), truncate)


def _listed(value: Any) -> Sequence[Any]:
    if isinstance(value, np.ndarray):
        return list(value.ravel())
    return value if isinstance(value, list | tuple) else [value]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"`{name}` holds a {type(value).__name__}, not a text", where=name)
    return str(value)


def _file(value: Any, name: str) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str | Path):
        raise InputError(f"`{name}` holds a {type(value).__name__}, not a path or the bytes of a file", where=name)
    try:
        return Path(value).read_bytes()
    except OSError as error:
        raise InputError(f"`{name}` cannot be read: {error.strerror or error}", where=str(value)) from error
