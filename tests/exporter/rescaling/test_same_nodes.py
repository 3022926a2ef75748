"""A rescaling makes no rounding worse: where the same nodes are half, the error is that of the model as it was."""

from __future__ import annotations

import importlib

import pytest

from tests.exporter.rescaling.planted import PLANTED
from tests.exporter.rescaling.same_nodes import errors_with_the_same_nodes
from tests.hard.build import CORPUS

importlib.import_module("tests.hard.overflow")

OVERFLOW = [name for name in CORPUS if CORPUS[name]().kind == "overflow"]

NOISE = 1.01
"""Numbers that become subnormal in half, or cease to be, round otherwise; every other error is the same bit for bit."""

LEFT_ALONE = frozenset(
    "softplus_by_exp mish_algebraic logsumexp_naive softmax_late_max poisson_rate fixed_point_grid "
    "pressure_in_pascal".split()
)
"""Models in which logarithms, exponentials or inputs fix the scale."""


@pytest.mark.parametrize("name", [*PLANTED, *OVERFLOW])
def test_no_error_rises(name: str):
    """On inputs that nobody saw, for the models that people meet and all of `tests/hard` that overflow."""
    found = errors_with_the_same_nodes({**PLANTED, **CORPUS}[name]())

    assert (found is None) == (name in LEFT_ALONE)
    if found is not None:
        without, with_it = found
        assert 0 < with_it <= NOISE * without
