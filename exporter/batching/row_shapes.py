"""Shapes of a model's tensors in batches of two and of three equal rows, which tell the axes that belong to rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import onnx_ir as ir

from demi.calibration.body_tensors import body_elements
from demi.calibration.observe import probing
from demi.exporter.batching.trial_rows import join_rows
from demi.tensors import Feeds

BATCHES = (2, 3)

Shape = tuple[int, ...]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class RowShapes:
    """Shapes by tensor, in the batch of two rows and in that of three."""

    outer: Mapping[str, tuple[Shape, Shape]]
    """Inputs and tensors of the main graph."""
    inner: Mapping[str, tuple[int, int]]
    """Numbers of elements of tensors in bodies of If, Loop and Scan, over all turns."""

    def axes(self, name: str) -> list[int] | None:
        """Return the axes of a tensor of the main graph that grow with the rows; None if it is unknown or empty."""
        small, large = self.outer.get(name, ((0,), (0,)))
        if 0 in small or 0 in large:
            return None
        if len(small) != len(large):
            return []
        return [axis for axis, (one, other) in enumerate(zip(small, large, strict=True)) if one != other]

    def is_empty(self, name: str) -> bool:
        """Return True if a tensor of the main graph has no elements in both batches."""
        return name in self.outer and all(0 in shape for shape in self.outer[name])

    def rank(self, name: str) -> int:
        """Return the number of axes of a tensor of the main graph, which is known."""
        return len(self.outer[name][0])

    def is_shared_inside(self, name: str) -> bool:
        """Return True if a tensor in a body has equally many elements, but not none, in both batches."""
        small, large = self.inner.get(name, (0, 0))
        return small == large > 0


def row_shapes(model: ir.Model, row: Feeds) -> RowShapes:
    """Run a prepared FP32 model on copies of a row; DemiError where its inner tensors cannot be read."""
    small, large = (join_rows([row] * count) for count in BATCHES)
    with probing(model) as probe:
        outer = [
            {name: array.shape for values in (feeds, *probe.read(feeds)) for name, array in values.items()}
            for feeds in (small, large)
        ]
    inner = [body_elements(model, feeds) for feeds in (small, large)]
    return RowShapes(_in_both(*outer), _in_both(*inner))


def _in_both(small: Mapping[str, Value], large: Mapping[str, Value]) -> dict[str, tuple[Value, Value]]:
    return {name: (small[name], large[name]) for name in small.keys() & large.keys()}
