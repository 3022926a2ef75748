"""Integers that OpenVINO computes exactly: each input has a limit, and a model with too small a one is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from demi.errors import SourceError, TensorError
from demi.runtime.onnxruntime import session as onnxruntime
from demi.runtime.openvino.options import OvSettings
from demi.runtime.openvino.session import open_session, openvino_version
from tests.server.bundles import serialized

pytestmark = pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")

FP32 = OvSettings("f32", threads=1)

EXACT = {
    "looked up": (
        "m (int64[n] x) => (float[n] y) <float[3] table = {1, 2, 3}> { y = Gather(table, x) }",
        2**31 - 1,
    ),
    "converted": ("m (int64[n] x) => (float[n] y) { y = Cast<to=1>(x) }", 2**31 - 1),
    "compared": ("m (int64[n] x) => (bool[n] y) <int64 pad = {5}> { y = Equal(x, pad) }", 2**24),
    "shifted": ("m (int64[n] x) => (int64[n] y) <int64 more = {2}> { y = Add(x, more) }", 2**30),
    "counted with a mask": (
        """m (int64[n, t] x) => (int64[n, t] y) <int64 pad = {1}, int64 along = {1}>
        { is = Equal(x, pad) none = Not(is) own = Cast<to=7>(none) places = CumSum(own, along) y = Mul(places, own) }""",
        2**24,
    ),
    "summed": (
        "m (int64[n, t] x) => (int64[n] y) <int64[1] along = {1}> { y = ReduceSum<keepdims=0>(x, along) }",
        2**8,
    ),
    "bytes that are summed": (
        "m (uint8[n, t] x) => (float[n] y) <int64[1] along = {1}> { z = Cast<to=1>(x) y = ReduceSum<keepdims=0>(z, along) }",
        255,
    ),
}

BEYOND = {
    "multiplied by 31": "m (int64[n] x) => (int64[n] y) <int64 by = {31}> { y = Mul(x, by) }",
    "multiplied with each other": "m (int64[n] x) => (int64[n] y) { y = Mul(x, x) }",
    "a product of bytes": """m (uint8[n, t] x) => (int64[n] y) <int64[1] a = {1}>
    { z = Cast<to=7>(x) y = ReduceProd<keepdims=0>(z, a) }""",
    "a product of all": "m (int64[n, t] x) => (int64[n] y) <int64[1] a = {1}> { y = ReduceProd<keepdims=0>(x, a) }",
}


@pytest.mark.parametrize(("text", "limit"), EXACT.values(), ids=EXACT)
def test_inputs_up_to_the_limit_are_exact(text, limit):
    """At the limit, answers are those of ONNX Runtime; above it, the request is refused with the value and a way out."""
    model = serialized(text)
    session, other = open_session(model, FP32), onnxruntime.open_session(model)
    shape = tuple(1 if isinstance(dim, str) and dim == "n" else 3 for dim in session.inputs[0].shape)
    kind = session.inputs[0].dtype.numpy
    assert session._limits[session.inputs[0].name] >= limit
    feeds = {"x": np.full(shape, min(limit, 2) if "table" in text else limit, kind)}

    np.testing.assert_array_equal(other.run(feeds)["y"], session.run(feeds)["y"])
    if kind == np.int64 and "table" not in text and limit < 2**31 - 1:
        for beyond in (limit + 1, -limit - 1):
            with pytest.raises(TensorError, match=rf"holds {beyond}, and OpenVINO .* exactly up to {limit} only"):
                session.run({"x": np.full(shape, beyond)})


@pytest.mark.parametrize("text", BEYOND.values(), ids=BEYOND)
def test_models_that_compute_beyond_are_refused(text):
    """The reason names the input, and the hint the other runtime."""
    with pytest.raises(SourceError, match="computes with the integers of `x`, which OpenVINO does in FP32") as refused:
        open_session(serialized(text), FP32)

    assert refused.value.hint == "run this model with --runtime onnxruntime"


def test_openvino_is_inexact_beyond():
    """The reason for all this: OpenVINO takes 2**24 + 1 for 2**24 when it compares."""
    import openvino

    core = openvino.Core()
    text = "m (int64[n] x) => (bool[n] y) <int64 large = {16777216}> { y = Equal(x, large) }"
    compiled = core.compile_model(core.read_model(serialized(text)), "CPU")

    assert [True] == compiled({"x": np.array([2**24 + 1])})[0].tolist(), "OpenVINO became exact: raise the limits"
