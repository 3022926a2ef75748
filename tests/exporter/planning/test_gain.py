"""The gain from half precision, and the warning before anything is written."""

import pytest

from demi.exporter.passes.lower import apply_plan
from demi.exporter.planning.gain import Gain, gain
from demi.exporter.request import ExportRequest
from demi.plan import Precision, Reason
from tests.exporter.planning.helpers import plan
from tests.models import MLP, prepared

QUANTIZED = """
m (float[n, 64] x) => (float[n, 64] y)
<float scale = {0.1}, uint8 zero = {128}, float scales = {0.1}>
{ [quant] q = QuantizeLinear(x, scale, zero) [back] d = DequantizeLinear(q, scale, zero) [turn] t = Transpose(d) [product] y = MatMul(d, t) [act] z = Tanh(y) }
"""


def gained(source: str, half: set[str], single_flops: float | None) -> Gain:
    """The gain of a model in text with these nodes in half."""
    model = prepared(source)
    chosen = plan(model, half)
    return gain(model, apply_plan(model, chosen).model, chosen, single_flops, ["FP32"])


def test_a_conversion_that_pays():
    """With all products in half and half the bytes there is no warning."""
    found = gained(MLP, {"first", "bias", "act", "second"}, 0.0)

    assert (4, 1.0, 0.5, 0, 2) == (
        found.half_nodes,
        found.half_flops,
        found.weight_share,
        found.quantized,
        found.products,
    )
    assert not found.objection


def test_next_to_nothing():
    """With hardly any FLOPs in half and weights as large as before, the warning gives both numbers."""
    found = gained(MLP, {"act"}, 0.987)

    assert (
        "half precision gains almost nothing for this model: 1.3% of its FLOPs are in half, "
        "and its weights take 1.000 of their bytes" == found.objection
    )


def test_already_quantized():
    """Products of dequantized numbers are recognised through operators that only move them."""
    found = gained(QUANTIZED, set(), 1.0)

    assert (1, 1) == (found.quantized, found.products)
    assert (
        "1 of its 1 products are quantized already, which saves more than half does"
        in Gain(1, 0.01, 1.034, 1, 1).objection
    )


@pytest.mark.parametrize(("flops", "weights"), [(0.5, 1.0), (0.01, 0.6), (None, 1.0)])
def test_either_is_enough(flops, weights):
    """Saved FLOPs or saved bytes are a gain; without measurements there is no warning."""
    assert not Gain(3, flops, weights, 0, 3).objection


def test_no_half_node():
    """The plan's reasons explain a missing gain."""
    model = prepared(MLP)
    chosen = plan(model, set())
    for name, decision in chosen.decisions.items():
        assert Precision.SINGLE is decision.precision, name
    found = gain(model, model, chosen, 1.0, ["FP32"])

    assert found.objection.startswith("no node computes in half: this model gains nothing")
    assert Reason.SAFE in {decision.reason for decision in chosen.decisions.values()}


def test_warns_before_anything_is_written(tmp_path):
    """`export_bundle` warns while there is no bundle yet."""
    import numpy as np
    import onnx_ir as ir

    from demi.exporter.pipeline import export_bundle
    from demi.exporter.planning.find_plan import PlanSettings
    from demi.exporter.sources.options import SourceOptions

    ir.save(prepared(MLP), tmp_path / "m.onnx")
    seen = []
    request = ExportRequest(
        source=tmp_path / "m.onnx",
        output=tmp_path / "out" / "m",
        settings=PlanSettings(keep_fp32=("*",)),
        options=SourceOptions(samples=({"x": np.ones((4, 4), np.float32)},)),
        report=False,
    )

    result = export_bundle(request, warn=lambda words: seen.append((words, request.target.exists())))

    assert [("no node computes in half: --keep-fp32 keeps all of them", False)] == seen
    assert result.path.exists()
