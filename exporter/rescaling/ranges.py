"""The ranges of a rescaled model: those of the original, moved by its certificate's exponents instead of observed again."""

from __future__ import annotations

import onnx_ir as ir

from demi.calibration.observe import weight_ranges
from demi.calibration.profile import RangeProfile
from demi.calibration.rescaling.certificate import Certificate


def rescaled_ranges(original: RangeProfile, changed: ir.Model, certificate: Certificate) -> RangeProfile:
    """Return the profile of a rescaled model, from that of the original on the same samples.

    Each tensor is exactly 2^exponent times the original's. A tensor that a Mul by a power of two makes is named in the
    certificate alone, and is the scaled form of what the Mul reads.
    """
    found = dict(original.ranges)
    for name, exponent in certificate.tensors.items():
        if name in original.ranges:
            found[name] = original.ranges[name].times_two_to(exponent)
    factors = {each.name: each.exponent for each in certificate.constants if not each.source}
    for node in changed.graph.all_nodes():
        read = {value.name or "" for value in node.inputs if value is not None}
        factor = next((name for name in read if name in factors), None)
        if factor is not None and (source := found.get(next(iter(read - {factor}), ""))) is not None:
            found[node.outputs[0].name or ""] = source.times_two_to(factors[factor])
    return RangeProfile(original.origin, original.sets, found | weight_ranges(changed))
