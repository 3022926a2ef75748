"""Argument checks of `convert`: numbers, switches, patterns and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from demi.arguments import require
from demi.arrays import as_array
from demi.errors import InputError
from demi.tensors import Array, Feeds


def require_number(value: Any, name: str, least: float, *, whole: bool = False) -> None:
    """Raise InputError unless the argument is a finite number (a whole one) of at least `least`."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    wanted = f"a {'whole ' if whole else ''}number >= {least:g}"
    require(value, kinds, name, wanted)
    if isinstance(value, bool) or not least <= value < float("inf"):
        raise InputError(f"`{name}` is {value}, not {wanted}", where=name)


def require_function(value: Any, name: str, wanted: str) -> None:
    """Raise InputError unless the argument can be called; `wanted` describes it."""
    if not callable(value):
        raise InputError(f"`{name}` is a {type(value).__name__}, not {wanted}", where=name)


def require_switches(**switches: Any) -> None:
    """Raise InputError for a switch that is neither True nor False: the string `no` would count as True."""
    for name, value in switches.items():
        require(value, (bool, np.bool_), name, "True or False")


def patterns(value: Any, name: str) -> tuple[str, ...]:
    """Return the patterns of `keep_fp32` or `force_half`; a single string is one pattern, not a sequence of letters."""
    if isinstance(value, str):
        return (value,)
    require(value, (list, tuple, set, frozenset), name, "a list of names, globs or operator types")
    for each in value:
        require(each, str, name, "a name, glob or operator type")
    return tuple(value)


def sample_sets(samples: Any) -> list[Feeds]:
    """Return the sets of samples as arrays by input name; an empty list for None."""
    if samples is None:
        return []
    if isinstance(samples, Mapping):
        raise InputError(
            "`samples` is one set of inputs, not a list of them", where="samples", hint="write samples=[{name: array}]"
        )
    require(samples, Sequence, "samples", "a list of {input name: array}")
    for each in samples:
        require(each, Mapping, "samples", "a list of {input name: array}")
    return [{str(name): _array(array, str(name)) for name, array in feeds.items()} for feeds in samples]


def _array(value: Any, name: str) -> Array:
    try:
        return as_array(value)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths, a tensor that requires grad
        reason = str(error).splitlines()[0]
        raise InputError(f"the samples for `{name}` cannot become an array: {reason}", where="samples") from error
