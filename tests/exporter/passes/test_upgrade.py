"""Upgrading the opset: only when the wanted half type needs it, and only when the outputs stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.calibration.sessions import session_for
from demi.exporter.api import convert
from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.upgrade import upgrade, wanted_opsets
from demi.plan import Reason
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds
from tests.models import check

BF16, FP16 = ir.DataType.BFLOAT16, ir.DataType.FLOAT16

CONV = """<ir_version: 8, opset_import: ["" : OPSET]>
picture (float[n, 1, 4, 4] x) => (float[n, 2, 2, 2] y)
<float[2, 1, 3, 3] w = {0.1, 0.2, 0.3, -0.1, -0.2, -0.3, 0.4, 0.5, 0.6, 0.7, -0.8, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5, -0.6>
{ [conv] h = Conv(x, w) [act] y = Relu(h) }""".replace("-0.6>", "-0.6}>")

MEAN = """<ir_version: 8, opset_import: ["" : 13]>
picture (float[n, 1, 4, 4] x) => (float[n, 1] y)
{ [pool] h = AveragePool <kernel_shape = [2, 2]> (x) [mean] y = ReduceMean <axes = [2, 3], keepdims = 0> (h) }"""
"""ReduceMean took its axes as an attribute before opset 18: converting it is more than a new number."""

FEEDS = [{"x": np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(np.float32)}]


def with_references(text: str) -> tuple[ir.Model, list[Feeds]]:
    """A prepared model and its outputs on FEEDS."""
    model = prepare(ir.from_onnx_text(text))
    with session_for(model, settings=FAITHFUL) as session:
        return model, [session.run(feeds) for feeds in FEEDS]


def conv(opset: int) -> str:
    """A convolution in that opset."""
    return CONV.replace("OPSET", str(opset))


@pytest.mark.parametrize(
    ("opset", "half", "expected"),
    [
        (18, BF16, [22]),
        (13, BF16, [22]),
        (12, BF16, [22, 13]),
        (22, BF16, []),
        (23, BF16, []),
        (18, FP16, []),
        (13, FP16, []),
        (8, FP16, [9]),
        (7, BF16, [22, 13, 9]),
    ],
)
def test_the_half_type_decides(opset: int, half: ir.DataType, expected: list[int]):
    """Conv takes bfloat16 from opset 22 on, Relu from 13; both have always taken float16, which opset 9 can measure."""
    assert expected == wanted_opsets(prepare(ir.from_onnx_text(conv(opset))), half)


def test_operators_that_stay_fp32_anyway_ask_for_nothing():
    """RoiAlign gains bfloat16 in opset 22, but is kept in FP32 whatever its type."""
    text = """<ir_version: 8, opset_import: ["" : 18]>
    rois (float[1, 1, 4, 4] x, float[k, 4] rois, int64[k] i) => (float[k, 1, 1, 1] y) { y = RoiAlign(x, rois, i) }"""

    assert [] == wanted_opsets(prepare(ir.from_onnx_text(text)), BF16)


def test_a_model_that_needs_nothing_is_handed_back():
    """The same object, in its own opset."""
    model, references = with_references(conv(18))

    assert model is upgrade(model, FP16, FEEDS, references)


@pytest.mark.parametrize("text", [conv(18), conv(13), conv(11), MEAN], ids=["in place", "opset 13", "opset 11", "axes"])
def test_the_upgraded_model_computes_the_same(text: str):
    """Opset 22, the IR version it had, the public names it had, a valid model, and the same numbers."""
    model, references = with_references(text)

    upgraded = upgrade(model, BF16, FEEDS, references)

    assert 22 == upgraded.opset_imports[""]
    assert 8 == upgraded.ir_version
    assert ["x"] == [value.name for value in upgraded.graph.inputs]
    check(upgraded)
    with session_for(upgraded, settings=FAITHFUL) as session:
        np.testing.assert_allclose(references[0]["y"], session.run(FEEDS[0])["y"], rtol=1e-6)


def test_other_outputs_drop_the_upgrade():
    """References that the upgraded model does not meet leave the model in its opset."""
    model, references = with_references(conv(18))

    assert model is upgrade(model, BF16, FEEDS, [{"y": references[0]["y"] + 1}])


def test_weights_in_other_files_are_not_read(tmp_path):
    """The converter for old opsets gets the model without large weights, which stay in their files."""
    proto = onnx.parser.parse_model(conv(13))
    big = np.zeros((64, 64, 3, 3), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(big, "big"))
    proto.graph.node.append(onnx.helper.make_node("ReduceSum", ["big"], ["total"], keepdims=0))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("total", 1, []))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=1000)
    model = prepare(ir.load(tmp_path / "m.onnx"))
    with session_for(model, settings=FAITHFUL) as session:
        references = [session.run(feeds) for feeds in FEEDS]

    upgraded = upgrade(model, BF16, FEEDS, references)

    assert 22 == upgraded.opset_imports[""]
    assert isinstance(upgraded.graph.initializers["big"].const_value, ir.ExternalTensor)


def test_a_bf16_conversion_upgrades_by_itself():
    """`convert` to BF16 puts the convolution in half; to FP16 it leaves the opset alone."""
    model = onnx.parser.parse_model(conv(18))

    bf16, fp16 = (convert(model, FEEDS, precision=precision) for precision in ("bf16", "fp16"))

    assert [22, 18] == [done.model.opset_import[0].version for done in (bf16, fp16)]
    assert bf16.plan["conv"].is_half


def test_without_a_run_nothing_is_upgraded_and_the_plan_says_why():
    """An upgrade that cannot be proven is not made; the evidence names the opset that would do."""
    done = convert(onnx.parser.parse_model(conv(18)), precision="bf16", verify=False)

    assert 18 == done.model.opset_import[0].version
    assert (Reason.NO_HALF_TYPE, "Conv (opset 18) takes no bfloat16; from opset 22 on it does") == (
        done.plan["conv"].reason,
        done.plan["conv"].evidence,
    )
