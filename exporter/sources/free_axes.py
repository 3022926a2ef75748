"""Free axes learned from samples: where two sets differ in size, the axis cannot be a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from demi.tensors import Array, Dim, Feeds, TensorSpec


def varying_axes(name: str, samples: Sequence[Feeds]) -> frozenset[int]:
    """The axes of an input in which the sets differ, or that one of them leaves empty; none where ranks differ."""
    shapes = [feeds[name].shape for feeds in samples if name in feeds]
    if len({len(shape) for shape in shapes}) != 1:
        return frozenset()
    return frozenset(axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1 or 0 in sizes)


def freed(name: str, dims: Sequence[Dim], samples: Sequence[Feeds]) -> tuple[Dim, ...]:
    """The dimensions of an input with a name where the sets say that it varies."""
    varying = varying_axes(name, samples)
    return tuple(f"{name}_dim{i}" if i in varying and isinstance(dim, int) else dim for i, dim in enumerate(dims))


def freed_specs(specs: Sequence[TensorSpec], samples: Sequence[Feeds]) -> tuple[TensorSpec, ...]:
    """Specs that someone guessed, with the axes free that samples show to vary."""
    return tuple(replace(spec, shape=freed(spec.name, spec.shape, samples)) for spec in specs)


def best_example(samples: Sequence[Feeds]) -> Feeds:
    """The set (of at least one) that shows an exporter the most: with no axis of size 0 or 1 where another set has a larger one."""

    def small(feeds: Feeds) -> int:
        return sum(_count_small(array) for array in feeds.values())

    return min(samples, key=small)


def _count_small(array: Array) -> int:
    """How many axes hide that they may be longer; an empty one hides more than one of size 1."""
    return sum({0: 100, 1: 1}.get(size, 0) for size in array.shape)
