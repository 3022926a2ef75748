"""Random solutions of a model's equations: what a rescaling may be, whatever is best."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from scipy.optimize import Bounds, LinearConstraint, milp

from demi.calibration.profile import RangeProfile
from demi.calibration.rescaling.certificate import Certificate
from demi.exporter.rescaling.apply import apply
from demi.exporter.rescaling.equations import ZERO, equations_of

LARGEST = 6

MULTIPLIED = 0.15
"""The share of edges, outputs among them, that may get a Mul."""


def any_certificate(model: ir.Model, rng: np.random.Generator) -> tuple[ir.Model, Certificate]:
    """A copy that is rescaled at random, as far as its equations allow, and its certificate."""
    copy = model.clone()
    system = equations_of(copy, RangeProfile())
    multiplied = {edge for edge in system.edges if rng.random() < MULTIPLIED}
    equations = [*system.equations, *({one: 1, other: -1} for one, other in system.ties(multiplied) if other != ZERO)]
    matrix = np.zeros((len(equations) + 1, system.count))
    for row, terms in enumerate(equations):
        for variable, coefficient in terms.items():
            matrix[row, variable] = coefficient
    matrix[-1, ZERO] = 1
    bounds = Bounds(np.full(system.count, -LARGEST), np.full(system.count, LARGEST))
    found = milp(
        rng.normal(size=system.count),
        integrality=np.ones(system.count),
        bounds=bounds,
        constraints=LinearConstraint(matrix, 0, 0),
    )
    assert found.x is not None
    return copy, apply(system, tuple(round(value) for value in found.x))


def any_exponents(model: ir.Model, rng: np.random.Generator) -> ir.Model:
    """The copy alone."""
    return any_certificate(model, rng)[0]
