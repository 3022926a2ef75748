"""Shapes are checked on the graph once, and a limited number of them is cached."""

from __future__ import annotations

import numpy as np
import pytest

from demi.errors import TensorError
from demi.runtime.openvino.shapes import ShapeCheck
from demi.tensors import parse_spec


class Graph:
    """A graph that takes inputs `x` of at most three rows, and records the shapes that it was given."""

    def __init__(self) -> None:
        self.asked: list[dict[str, list[int]]] = []

    def reshape(self, shapes: dict[str, list[int]]) -> None:
        self.asked.append(shapes)
        if shapes["x"][0] > 3:
            raise RuntimeError("Exception from src/a.cpp:1: too many rows")


def rows(count: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros((count, 2), np.float32)}


def test_each_combination_once():
    """Each combination of shapes is checked once."""
    graph = Graph()
    check = ShapeCheck(graph, [parse_spec("x:fp32[n,2]")])
    for count in (1, 2, 1, 2):
        check.check(rows(count))

    assert [{"x": [1, 2]}, {"x": [2, 2]}] == graph.asked


def test_invalid_shapes():
    """Invalid shapes are refused each time."""
    check = ShapeCheck(Graph(), [parse_spec("x:fp32[n,2]")])
    for _ in range(2):
        with pytest.raises(TensorError, match="does not take inputs of these shapes: too many rows"):
            check.check(rows(4))


def test_bounded_cache():
    """The cache is bounded, so that clients cannot fill the memory with shapes."""
    graph = Graph()
    check = ShapeCheck(graph, [parse_spec("x:fp32[n,2]")], most=1)
    for count in (1, 2, 1):
        check.check(rows(count))

    assert 3 == len(graph.asked)


def test_fixed_shapes():
    """Fixed shapes are not checked."""
    graph = Graph()
    ShapeCheck(graph, [parse_spec("x:fp32[1,2]")]).check(rows(1))

    assert [] == graph.asked
