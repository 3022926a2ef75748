"""Models that leave half's range as people meet them: fewer islands, the same bits."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from demi.calibration.observe import observe
from demi.calibration.samples import Samples
from demi.exporter.api import convert
from demi.exporter.passes.prepare import prepare
from demi.exporter.rescaling.rescale import differing_bits, rescale_prepared
from tests.exporter.rescaling.planted import PLANTED

MOST_LEFT = {"t5_like": 0.6, "gemma_like": 0.5, "vae_decoder": 0.0, "resnet_statistics": 0.0, "two_tower": 0.0}
"""The share of islands that may be left: an epsilon of 1e-6 beside squares of 1e9 spans more than half does."""


@pytest.mark.parametrize("name", PLANTED)
def test_islands_disappear_and_no_bit_changes(name: str):
    """On the samples that were observed, and on others."""
    hard = PLANTED[name]()
    model = prepare(ir.from_proto(hard.model))
    profile = observe(model, Samples(tuple(hard.calibration), "the test"))

    found = rescale_prepared(model, hard.calibration, profile)

    assert found.certificate is not None
    assert found.certificate.before.nodes > 0
    assert found.certificate.after.nodes <= MOST_LEFT[name] * found.certificate.before.nodes
    assert [] == differing_bits(model, found.model, hard.evaluation)


@pytest.mark.parametrize("name", PLANTED)
def test_a_conversion_keeps_nothing_in_fp32(name: str):
    """An epsilon that the scale makes too small for half is half's smallest number, where no sample feels it."""
    hard = PLANTED[name]()

    found = convert(hard.model, hard.calibration)

    assert [] == [each.node for each in found.plan.computing if not each.is_half]
    assert ("epsilons" in found.plan.to_json().decode()) == (name in ("t5_like", "gemma_like"))
