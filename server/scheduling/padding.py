"""Padding: stretch requests of different lengths to one length, so that they can share a run, and trim the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from demi.errors import BundleError
from demi.server.protocol.signature import Signature
from demi.server.scheduling.job import Key
from demi.tensors import DType, Feeds, TensorSpec

Axes = dict[str, dict[int, str]]
"""Axes that may be padded: axis name by position, by tensor name."""


class Padding:
    """Padding of the requests of one batch, as the bundle's manifest declares it; without a declaration it does nothing.

    Raises BundleError if the declaration does not fit the bundle's tensors.
    """

    def __init__(self, signature: Signature) -> None:
        pad = signature.batch.pad
        self._inputs = _axes(signature.inputs, pad.axes)
        self._outputs = _axes(signature.outputs, pad.axes)
        self._values = pad.values
        if missing := sorted(set(pad.axes) - {name for axes in self._inputs.values() for name in axes.values()}):
            raise BundleError(f"the manifest declares axis `{missing[0]}` as padded, but no input has it after axis 0")
        for spec in signature.inputs:
            if spec.name in self._inputs:
                _check_value(spec, self._values.get(spec.name))

    def key(self, feeds: Feeds) -> Key:
        """Return the key that requests must share to be joined: their shapes without the batch axis and padded axes."""
        if not self._inputs:
            return tuple([values.shape[1:] for values in feeds.values()])
        return tuple(
            tuple(-1 if axis in self._inputs.get(name, ()) else size for axis, size in enumerate(values.shape) if axis)
            for name, values in feeds.items()
        )

    def length(self, feeds: Feeds) -> int:
        """Return the number of elements along the padded axes of one row."""
        return math.prod(self._lengths(feeds).values()) if self._inputs else 1

    def stretch(self, parts: Sequence[Feeds]) -> Sequence[Feeds]:
        """Return the inputs of all parts padded to the longest; without a copy if all are equally long."""
        lengths = [self._lengths(part) for part in parts] if self._inputs else []
        if all(found == lengths[0] for found in lengths):
            return parts
        longest = {name: max(found[name] for found in lengths) for name in lengths[0]}
        return [self._stretch(part, longest) for part in parts]

    def trim(self, outputs: Feeds, feeds: Feeds) -> Feeds:
        """Return the outputs of one part, trimmed to the lengths of its own inputs. Makes no copy."""
        if not self._outputs:
            return outputs
        lengths = self._lengths(feeds)
        return {
            name: values[_window(values.ndim, self._outputs.get(name, {}), lengths)] for name, values in outputs.items()
        }

    def _lengths(self, feeds: Feeds) -> dict[str, int]:
        return {axis: feeds[name].shape[at] for name, axes in self._inputs.items() for at, axis in axes.items()}

    def _stretch(self, part: Feeds, longest: dict[str, int]) -> Feeds:
        result = dict(part)
        for name, axes in self._inputs.items():
            values = part[name]
            shape = [longest[axes[at]] if at in axes else size for at, size in enumerate(values.shape)]
            result[name] = np.full(shape, self._values[name], values.dtype)
            result[name][tuple(slice(size) for size in values.shape)] = values
        return result


def _axes(specs: Sequence[TensorSpec], wanted: Sequence[str]) -> Axes:
    found = {
        spec.name: {at: dim for at, dim in enumerate(spec.shape) if at and isinstance(dim, str) and dim in wanted}
        for spec in specs
    }
    return {name: axes for name, axes in found.items() if axes}


def _window(rank: int, axes: dict[int, str], lengths: dict[str, int]) -> tuple[slice, ...]:
    return tuple(slice(lengths[axes[at]]) if at in axes else slice(None) for at in range(rank))


def _check_value(spec: TensorSpec, value: int | float | None) -> None:
    if value is None:
        raise BundleError(f"the manifest declares input `{spec.name}` as padded, but gives no padding value")
    if spec.dtype in (DType.BYTES, DType.BF16):
        raise BundleError(f"input `{spec.name}` is {spec.dtype.value}, which cannot be padded")
    with np.errstate(all="ignore"):
        fits = np.asarray(value).astype(spec.dtype.numpy) == value
    if not fits:
        raise BundleError(f"input `{spec.name}` cannot be padded with {value}: its dtype is {spec.dtype.value}")
