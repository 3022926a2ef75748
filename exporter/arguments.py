"""What the Python API takes, looked at before anything is done with it: mistakes are told in the caller's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from demi.errors import InputError
from demi.tensors import Feeds


def require(value: Any, kind: type | tuple[type, ...], name: str, wanted: str) -> None:
    """Raise InputError unless the argument called `name` is of that kind; `wanted` says it in words."""
    if not isinstance(value, kind):
        raise InputError(f"`{name}` is a {type(value).__name__}, not {wanted}", where=name)


def patterns(value: Any, name: str) -> tuple[str, ...]:
    """The patterns of `keep_fp32` or `force_half`; a single string is one pattern, not a row of letters."""
    if isinstance(value, str):
        return (value,)
    require(value, (list, tuple, set, frozenset), name, "a list of names, globs or operator types")
    for each in value:
        require(each, str, name, "a name, glob or operator type")
    return tuple(value)


def sample_sets(samples: Any) -> list[Feeds]:
    """The sets of samples as arrays by input name; none for None."""
    if samples is None:
        return []
    if isinstance(samples, Mapping):
        raise InputError(
            "`samples` is one set of inputs, not a list of them", where="samples", hint="write samples=[{name: array}]"
        )
    require(samples, Sequence, "samples", "a list of {input name: array}")
    for each in samples:
        require(each, Mapping, "samples", "a list of {input name: array}")
    return [{str(name): np.asarray(array) for name, array in feeds.items()} for feeds in samples]
