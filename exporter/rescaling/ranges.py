"""The ranges of a rescaled model: those of the original, moved by its certificate's exponents instead of observed again."""

from __future__ import annotations

import onnx_ir as ir

from demi.calibration.observe import weight_ranges
from demi.calibration.profile import RangeProfile
from demi.calibration.rescaling.certificate import Certificate


def rescaled_ranges(original: RangeProfile, changed: ir.Model, certificate: Certificate) -> RangeProfile:
    """Return the profile of a rescaled model, from that of the original on the same samples.

    Each tensor is exactly 2^exponent times the original's, with one exponent for all of its channels. A tensor that a Mul
    by a power of two makes is named in the certificate alone, and is the scaled form of what the Mul reads; in front of an
    output of the model it is the other way round.
    """
    found = dict(original.ranges)
    for name, exponent in certificate.tensors.items():
        if name in original.ranges and isinstance(exponent, int):
            found[name] = original.ranges[name].times_two_to(exponent)
    factors = {each.name: each.exponent for each in certificate.constants if not each.source}
    for node in changed.graph.all_nodes():
        read = [value.name or "" for value in node.inputs if value is not None]
        factor = next((factors[name] for name in read if name in factors), None)
        if isinstance(factor, int):
            tensor, product = read[0], node.outputs[0].name or ""
            if product in original.ranges:
                found[tensor] = original.ranges[product].times_two_to(-factor)
            elif tensor in found:
                found[product] = found[tensor].times_two_to(factor)
    return RangeProfile(
        original.origin, original.sets, found | weight_ranges(changed, found, _written_anew(certificate))
    )


def _written_anew(certificate: Certificate) -> frozenset[str]:
    """Return the names of the constants that the original has otherwise, or not at all."""
    return frozenset(each.name for each in certificate.constants)
