"""Free axes learned from samples: where two sets differ in size, the axis cannot be a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from demi.tensors import Array, Dim, Feeds, TensorSpec


def varying_axes(name: str, samples: Sequence[Feeds]) -> frozenset[int]:
    """Return the axes of an input in which the sets differ, or that are empty in one; none where ranks differ."""
    shapes = [feeds[name].shape for feeds in samples if name in feeds]
    if len({len(shape) for shape in shapes}) != 1:
        return frozenset()
    return frozenset(axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1 or 0 in sizes)


def freed(name: str, dims: Sequence[Dim], samples: Sequence[Feeds]) -> tuple[Dim, ...]:
    """Return the dimensions of an input, with a name for each that varies between the sets."""
    varying = varying_axes(name, samples)
    return tuple(f"{name}_dim{i}" if i in varying and isinstance(dim, int) else dim for i, dim in enumerate(dims))


def freed_specs(specs: Sequence[TensorSpec], samples: Sequence[Feeds]) -> tuple[TensorSpec, ...]:
    """Return guessed specs with the axes free that vary between samples."""
    return tuple(replace(spec, shape=freed(spec.name, spec.shape, samples)) for spec in specs)


def best_example(samples: Sequence[Feeds]) -> Feeds:
    """Return the most informative set for an exporter: the one with the fewest axes of size 0 or 1."""

    def small(feeds: Feeds) -> int:
        return sum(_count_small(array) for array in feeds.values())

    return min(samples, key=small)


def _count_small(array: Array) -> int:
    """Count the axes of size 0 or 1, which hide that they may be longer; an empty one weighs more."""
    return sum({0: 100, 1: 1}.get(size, 0) for size in array.shape)
