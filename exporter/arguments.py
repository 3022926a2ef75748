"""What a conversion takes: numbers, switches, patterns and samples, as `demi.arguments` looks at them."""

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
    """Raise InputError unless the argument can be called; `wanted` says how, in words."""
    if not callable(value):
        raise InputError(f"`{name}` is a {type(value).__name__}, not {wanted}", where=name)


def require_switches(**switches: Any) -> None:
    """Raise InputError for a switch that is neither True nor False: a text that says no would be a yes."""
    for name, value in switches.items():
        require(value, (bool, np.bool_), name, "True or False")


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
    return [{str(name): _array(array, str(name)) for name, array in feeds.items()} for feeds in samples]


def _array(value: Any, name: str) -> Array:
    try:
        return as_array(value)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of several lengths, a tensor with its gradient
        reason = str(error).splitlines()[0]
        raise InputError(f"what the samples hold for `{name}` is no array: {reason}", where="samples") from error
