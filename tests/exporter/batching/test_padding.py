"""The axis that may be padded: found by its mask, and only if outputs stay the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from demi.bundles.manifest import PadSpec
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.exporter.batching.padding import find_padding, masked_axis
from demi.exporter.passes.prepare import prepare
from demi.tensors import parse_spec

MODEL = """<ir_version: 9, opset_import: ["" : 18]>
mean (int64[batch,length] ids, int64[batch,length] mask) => (float[batch,2] y)
<float[5,2] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, int64[1] one = {1}, int64[1] last = {-1}>
{
  rows = Gather(table, ids) m = Cast <to = 1> (mask) wide = Unsqueeze(m, last) kept = Mul(rows, wide)
  total = ReduceSum <keepdims = 0> (kept, one) count = ReduceSum <keepdims = 1> (m, one) y = Div(total, count)
}"""

SAMPLES = Samples(({"ids": np.int64([[1, 2, 3], [4, 0, 0]]), "mask": np.int64([[1, 1, 1], [1, 0, 0]])},), "here")


def found(text: str) -> PadSpec:
    """Return the padding of a model text."""
    model = prepare(ir.from_onnx_text(text))
    with session_for(model) as session:
        return find_padding(session, SAMPLES, model)


def test_masked_mean_may_be_padded():
    """A masked mean does not change with zero ids under a mask of zeros."""
    assert PadSpec(("length",), {"ids": 0, "mask": 0}) == found(MODEL)


def test_padding_that_leaks_is_not_offered():
    """A model that counts every position, masked or not, is not padded."""
    leaking = MODEL.replace("Cast <to = 1> (mask)", "Cast <to = 1> (all)").replace(
        "rows =", "all = Equal(mask, mask) rows ="
    )

    assert PadSpec() == found(leaking)


def test_padding_that_a_rare_token_shows_is_not_offered():
    """A model that takes the mean over all positions for rows with the id 99, which no sample has, is not padded."""
    rare = MODEL.replace(
        "y = Div(total, count)",
        """usual = Div(total, count) mean = ReduceMean <keepdims = 0> (rows, one)
      is = Equal(ids, image) flag = Cast <to = 1> (is) most = ReduceMax <keepdims = 1> (flag, one)
      rare = Cast <to = 9> (most) y = Where(rare, mean, usual)""",
    ).replace("int64[1] one", "int64 image = {99}, int64[1] one")

    assert PadSpec() == found(rare)


def test_what_has_no_mask_has_no_axis():
    """Nothing is padded with floats, a single input, no input named as a mask, or two free axes."""
    ids, mask = parse_spec("ids:int64[batch,length]"), parse_spec("mask:int64[batch,length]")

    assert "length" == masked_axis([ids, mask])
    assert masked_axis([mask]) is None
    assert masked_axis([ids, parse_spec("types:int64[batch,length]")]) is None
    assert masked_axis([ids, parse_spec("mask:float32[batch,length]")]) is None
    assert masked_axis([ids, parse_spec("mask:int64[batch,other]")]) is None
