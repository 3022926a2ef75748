"""Shapes of inputs, tried on the graph before OpenVINO runs them.

OpenVINO's CPU kernels check little: a matrix product with constant weights reads as many columns as the weights have rows,
however many its input has, and what lies behind the input with it. Its graph knows better, and says so when it is given
the shapes. Every combination of shapes is tried once; it takes some milliseconds for a model of a few hundred nodes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from demi.errors import TensorError
from demi.runtime.openvino.failures import reason
from demi.tensors import Feeds, TensorSpec

MOST = 4096
"""Combinations that are remembered; beyond it all are forgotten, so that clients cannot fill the memory."""

Shapes = tuple[tuple[int, ...], ...]


class ShapeCheck:
    """Check of the shapes of inputs against a model's graph. Owns the graph; safe to call from several threads."""

    def __init__(self, model: Any, inputs: Sequence[TensorSpec], most: int = MOST) -> None:
        self._names = [spec.name for spec in inputs]
        self._model = model if any(-1 in spec.wire_shape for spec in inputs) else None
        self._most = most
        self._good: set[Shapes] = set()
        self._lock = threading.Lock()

    @property
    def good(self) -> frozenset[Shapes]:
        """The combinations that have held."""
        return frozenset(self._good)

    def check(self, feeds: Feeds) -> None:
        """Raise TensorError, with the node that does not hold, for shapes that the graph does not take."""
        shapes = tuple(feeds[name].shape for name in self._names)
        if self._model is None or shapes in self._good:
            return
        with self._lock:
            try:
                self._model.reshape(dict(zip(self._names, map(list, shapes), strict=True)))
            except RuntimeError as error:
                raise TensorError(f"the model does not take inputs of these shapes: {reason(error)}") from error
            if len(self._good) >= self._most:
                self._good.clear()
            self._good.add(shapes)
