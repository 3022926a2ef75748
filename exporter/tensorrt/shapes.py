"""The shapes an engine is built for, in trtexec's notation, with defaults from the bundle.

`input_ids:1x16,attention_mask:1x16` gives a shape for each input. By default rows range from 1 to the bundle's
largest batch, and fixed axes keep their size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from demi.bundles.manifest import BatchSpec
from demi.engines.record import ShapeRange
from demi.errors import InputError
from demi.tensors import TensorSpec

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ShapeOptions:
    """The shapes that the user gave, by input; each may be empty."""

    min: Shapes = field(default_factory=dict)
    opt: Shapes = field(default_factory=dict)
    max: Shapes = field(default_factory=dict)


def parse_shapes(text: str) -> Shapes:
    """Parse shapes by input from `name:1x3x224x224,name2:1`; InputError quotes a part that is not a shape."""
    found: Shapes = {}
    for part in text.split(","):
        name, colon, dims = part.strip().rpartition(":")
        if not (colon and name and re.fullmatch(r"\d+(x\d+)*", dims, re.ASCII)):
            raise InputError(
                f"cannot read `{part.strip()}` as the shape of an input",
                hint="write name:1x3x224x224, several with commas",
            )
        found[name] = tuple(int(dim) for dim in dims.split("x"))
    return found


def shape_ranges(specs: Sequence[TensorSpec], batch: BatchSpec, options: ShapeOptions) -> dict[str, ShapeRange]:
    """Return the smallest, optimal and largest shape of every input.

    Raises InputError for a name or a shape that does not fit the model, and for a free axis without a maximum.
    """
    known = {spec.name: spec for spec in specs}
    for flag, given in (("--min-shapes", options.min), ("--opt-shapes", options.opt), ("--max-shapes", options.max)):
        for name, shape in given.items():
            _check_given(flag, name, shape, known)
    ranges = {spec.name: _range(spec, batch, options) for spec in specs}
    _check_shared_axes(specs, ranges)
    return ranges


def _check_given(flag: str, name: str, shape: tuple[int, ...], known: Mapping[str, TensorSpec]) -> None:
    if name not in known:
        raise InputError(
            f"{flag} names `{name}`, which is not an input",
            hint="the inputs are " + ", ".join(map(str, known.values())),
        )
    spec = known[name]
    fixed = [(want, got) for want, got in zip(spec.shape, shape, strict=False) if isinstance(want, int)]
    if len(shape) != len(spec.shape) or any(want != got for want, got in fixed):
        raise InputError(f"{flag}: {'x'.join(map(str, shape))} is not a shape of {spec}")


def _range(spec: TensorSpec, batch: BatchSpec, options: ShapeOptions) -> ShapeRange:
    low, best, high = (given.get(spec.name) for given in (options.min, options.opt, options.max))
    lows, bests, highs = [], [], []
    for axis, dim in enumerate(spec.shape):
        least, most = _default(spec, axis, batch)
        top = _first(high, best, axis, most)
        if top is None:
            raise InputError(
                f"axis `{dim}` of `{spec.name}` is free, and an engine needs its largest size",
                hint=f"give it with --max-shapes {spec.name}:{_example(spec, batch)} (and --opt-shapes, --min-shapes)",
            )
        lows.append(_first(low, None, axis, least) or 0)
        bests.append(_first(best, high, axis, most) or 0)
        highs.append(top)
    if not all(a <= b <= c for a, b, c in zip(lows, bests, highs, strict=True)):
        raise InputError(
            f"the shapes of `{spec.name}` are not in order: {lows}, {bests}, {highs}", hint="min <= opt <= max"
        )
    return ShapeRange(tuple(lows), tuple(bests), tuple(highs))


def _default(spec: TensorSpec, axis: int, batch: BatchSpec) -> tuple[int, int | None]:
    """Return the default minimum and maximum of an axis; None for a maximum that is not known."""
    dim = spec.shape[axis]
    if isinstance(dim, int):
        return dim, dim
    return 1, batch.max_size if axis == 0 and batch.free else None


def _first(given: tuple[int, ...] | None, other: tuple[int, ...] | None, axis: int, default: int | None) -> int | None:
    chosen = given if given is not None else other
    return chosen[axis] if chosen is not None else default


def _example(spec: TensorSpec, batch: BatchSpec) -> str:
    return "x".join(str(_default(spec, axis, batch)[1] or 512) for axis in range(len(spec.shape)))


def _check_shared_axes(specs: Sequence[TensorSpec], ranges: Mapping[str, ShapeRange]) -> None:
    """Raise InputError where axes of one name, which have one size, have different ranges."""
    first: dict[str, tuple[str, tuple[int, int, int]]] = {}
    for spec in specs:
        shapes = ranges[spec.name]
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                sizes = (shapes.min[axis], shapes.opt[axis], shapes.max[axis])
                owner, expected = first.setdefault(dim, (spec.name, sizes))
                if sizes != expected:
                    raise InputError(
                        f"axis `{dim}` has (min, opt, max) {expected} in `{owner}` and {sizes} in `{spec.name}`"
                    )
