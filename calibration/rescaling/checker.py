"""The checker of a rescaling: whether a model gives the original's answers, for all inputs, by its certificate.

It starts from what the certificate says of constants and epsilons, carries exponents forward through every node
(`walk`, `forward`, `by_channel`), and refuses where operands of different scales meet, where a scaled tensor reaches an
operator that does not scale, or where an output of the graph is scaled. Then the outputs are the original's, to the last
bit, for every input whose numbers stay normal in FP32 on the way. How the exponents were found does not matter here.
"""

from __future__ import annotations

import onnx_ir as ir

from demi.calibration.rescaling.certificate import Certificate
from demi.calibration.rescaling.numbers import (
    lowered_constant,
    missing_constants,
    other_constants,
    other_halves,
    other_numbers,
    repeated_claims,
)
from demi.calibration.rescaling.structure import other_nodes
from demi.calibration.rescaling.walk import check_exponents


def check_rescaled(original: ir.Model, rescaled: ir.Model, certificate: Certificate) -> list[str]:
    """Return the errors in the certificate of a rescaled FP32 model; empty if it is exactly the original, scaled.

    Looks at every node, every constant's bits and every equation. Both models went through the same `prepare`.
    """
    named = {each.name: each for each in certificate.constants}
    problems = repeated_claims(certificate)
    problems += other_nodes(original, rescaled, certificate)
    problems += other_constants(original, rescaled, named)
    problems += other_numbers(rescaled, certificate.numbers, original)
    return problems or check_exponents(rescaled, certificate, named.get)


def check_lowered(mixed: ir.Model, certificate: Certificate, reference: ir.Model | None = None) -> list[str]:
    """Return the errors in the certificate of a model that was rescaled and then converted to half.

    Every equation is looked at, and every number; constants that the reference has under the same name are compared with
    it, rounded to half.
    """
    named = {each.name: each for each in certificate.constants}
    problems = repeated_claims(certificate) + missing_constants(mixed, certificate)
    problems += other_numbers(mixed, certificate.numbers)
    problems += other_halves(mixed, reference, named)
    return problems or check_exponents(mixed, certificate, lambda name: lowered_constant(name, named))
