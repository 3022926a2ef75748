"""Exponents by channel: the regions that allow them, what they repair, and what the checker says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demi.calibration import weights
from demi.calibration.observe import observe
from demi.calibration.rescaling.certificate import Certificate, Channels, as_powers
from demi.calibration.rescaling.checker import check_rescaled
from demi.calibration.samples import Samples
from demi.exporter.passes.fill_types import fill_types
from demi.exporter.rescaling.apply import Changes, scale_constants
from demi.exporter.rescaling.channels import composed, weights_by_channel
from demi.exporter.rescaling.equations import Operand
from demi.exporter.rescaling.regions import Region, region_of
from demi.exporter.rescaling.rescale import Rescaling, differing_bits, rescale_prepared
from tests.models import prepared

C = 4

BODIES = {
    "two linear layers": "h = MatMul(x, w0)  g = Add(h, b0)  a = Relu(g)  y = MatMul(a, w1)",
    "gemm": "h = Gemm(x, w0, b0)  a = LeakyRelu(h)  y = Gemm<transB=1>(a, w1)",
    "normalization": "h = LayerNormalization(x, b0, b1)  y = MatMul(h, w0)",
    "scale in primitives": "n = LpNormalization(x)  h = Mul(n, b0)  y = MatMul(h, w0)",
    "gated": "s = MatMul(x, w0)  t = Sigmoid(s)  h = MatMul(x, w1)  g = Mul(t, h)  y = MatMul(g, w2)",
    "values of attention": "q = MatMul(x, w2)  p = Softmax(q)  h = MatMul(x, w0)  m = MatMul(p, h)  y = MatMul(m, w1)",
    "two readers": "h = MatMul(x, w0)  y = MatMul(h, w1)  z = MatMul(h, w2)",
    "batch normalization": "i = Reshape(x, image)  h = BatchNormalization(i, b0, b1, b2, v0)  a = Relu(h)  c = Conv(a, k0)  y = Reshape(c, back)",
    "before a batch normalization": "i = Reshape(x, image)  h = Conv(i, k0)  n = BatchNormalization(h, b0, b1, b2, v0)  y = Reshape(n, back)",
    "group normalization": "i = Reshape(x, image)  h = GroupNormalization<num_groups=2>(i, b0, b1)  c = Conv(h, k0)  y = Reshape(c, back)",
    "instance normalization": "i = Reshape(x, image)  h = InstanceNormalization(i, b0, b1)  c = Conv(h, k0)  y = Reshape(c, back)",
    "a sum": "h = MatMul(x, w0)  k = MatMul(x, w1)  s = Add(h, k)  a = Relu(s)  y = MatMul(a, w2)",
}
"""Around `h`, whose channels may have scales of their own."""

NOT = {
    "gelu": "h = MatMul(x, w0)  a = Gelu(h)  y = MatMul(a, w1)",
    "softmax": "h = MatMul(x, w0)  a = Softmax(h)  y = MatMul(a, w1)",
    "residual": "h = MatMul(x, w0)  s = Add(h, x)  y = MatMul(s, w1)",
    "output": "h = MatMul(x, w0)  y = Relu(h)",
    "square": "h = MatMul(x, w0)  s = Mul(h, h)  y = MatMul(s, w1)",
    "normalized": "h = MatMul(x, w0)  n = LayerNormalization(h, b0)  y = MatMul(n, w1)",
    "grouped": "i = Reshape(x, image)  h = Conv(i, k0)  n = GroupNormalization<num_groups=2>(h, b0, b1)  y = Reshape(n, back)",
    "sum over channels": "h = MatMul(x, w0)  s = ReduceSum(h, last)  y = Mul(s, b0)",
}


def _model(body: str) -> ir.Model:
    rng = np.random.default_rng(3)

    def numbers(*shape: int) -> str:
        return ", ".join(f"{v:.4f}" for v in rng.uniform(0.5, 2.0, shape).ravel() * rng.choice([-1, 1]))

    constants = [f"float[{C},{C}] w{i} = {{{numbers(C, C)}}}" for i in range(3) if f"w{i}" in body]
    constants += [f"float[{C}] b{i} = {{{numbers(C)}}}" for i in range(3) if f"b{i}" in body]
    constants += [f"float[{C},{C},1,1] k0 = {{{numbers(C, C)}}}"] if "k0" in body else []
    constants += [f"float[{C}] v0 = {{1.5, 0.25, 3.0, 0.5}}"] if "v0" in body else []
    constants += [f"int64[4] image = {{1, {C}, 2, 2}}", f"int64[2] back = {{4, {C}}}"] if "image" in body else []
    constants += ["int64[1] last = {-1}"] if "last" in body else []
    outputs = "float[4, 4] y" + (", float[4, 4] z" if " z = " in body else "")
    lines = body.replace("  ", "\n")
    header = '<ir_version: 10, opset_import: ["" : 21]>' if "GroupNormalization" in body else ""
    model = prepared(f"{header} m (float[4, {C}] x) => ({outputs}) <{', '.join(constants)}> {{ {lines} }}")
    fill_types(model)
    return model


def _region(model: ir.Model) -> Region | None:
    return region_of(next(v for node in model.graph for v in node.outputs if v.name == "h"))


def _scaled(model: ir.Model, exponents: Any) -> tuple[ir.Model, Certificate]:
    """A copy whose region around `h` has these exponents, and its certificate."""
    copy = model.clone()
    region = _region(copy)
    assert region is not None
    exponents = np.array(exponents, np.int64)
    powers: dict[Operand, Any] = {operand: as_powers(exponents[layout]) for operand, layout in region.made_by.items()}
    powers |= {operand: as_powers(-exponents[layout]) for operand, layout in region.taken_by.items()}
    changes = Changes(set(copy.graph.initializers))
    scale_constants(powers, changes)
    tensors = {value.name or "": as_powers(exponents[layout]) for value, layout in region.tensors.items()}
    return copy, Certificate(tensors, tuple(changes.constants))


def _feeds(seed: int = 0) -> list[dict[str, Any]]:
    return [{"x": np.random.default_rng(seed).normal(0, 1, (4, C)).astype(np.float32)}]


@pytest.mark.parametrize("name", BODIES)
def test_region_is_found(name: str):
    """From the tensor to the weights that make it, and to those that take it up."""
    region = _region(_model(BODIES[name]))

    assert region is not None
    assert region.made_by
    assert region.taken_by


@pytest.mark.parametrize("name", NOT)
def test_no_region_where_a_scale_does_not_pass(name: str):
    """Gelu, a residual stream, an output, a square, a normalization or a sum over the channels."""
    assert _region(_model(NOT[name])) is None


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(BODIES)), exponents=st.lists(st.integers(-9, 9), min_size=C, max_size=C))
def test_any_exponents_leave_the_bits_and_are_accepted(name: str, exponents: list[int]):
    """Whatever powers of two the channels of a region take, FP32 answers are the same, and the checker agrees."""
    model = _model(BODIES[name])

    changed, certificate = _scaled(model, exponents)

    assert [] == check_rescaled(model, changed, certificate)
    assert [] == differing_bits(model, changed, _feeds())


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(BODIES)),
    exponents=st.lists(st.integers(-9, 9), min_size=C, max_size=C, unique=True),
    channel=st.integers(0, C - 1),
    step=st.sampled_from([-2, 1]),
)
def test_certificate_with_one_channel_changed_is_refused(name: str, exponents: list[int], channel: int, step: int):
    """Of a constant or a tensor; and a model that is scaled otherwise at one end only is refused with a true certificate."""
    model = _model(BODIES[name])
    changed, certificate = _scaled(model, exponents)

    for i, constant in enumerate(certificate.constants):
        assert isinstance(constant.exponent, Channels)
        lie = replace(constant, exponent=_moved(constant.exponent, channel, step))
        constants = (*certificate.constants[:i], lie, *certificate.constants[i + 1 :])
        assert check_rescaled(model, changed, replace(certificate, constants=constants))
        other = changed.clone()
        value = other.graph.initializers[constant.name]
        assert value.const_value is not None
        powers = np.zeros(constant.exponent.shape, np.int64)
        powers.flat[channel] = step
        value.const_value = ir.Tensor(np.ldexp(value.const_value.numpy(), powers), name=constant.name)
        assert check_rescaled(model, other, replace(certificate, constants=constants))
        assert differing_bits(model, other, [_feeds(seed)[0] for seed in range(4)])  # Relu hides a channel of some
    for tensor, powers_ in certificate.tensors.items():
        assert isinstance(powers_, Channels)
        tensors = certificate.tensors | {tensor: _moved(powers_, channel, step)}
        assert check_rescaled(model, changed, replace(certificate, tensors=tensors))


def _moved(powers: Channels, channel: int, step: int) -> Channels:
    exponents = list(powers.exponents)
    exponents[channel] += step
    return Channels(powers.shape, tuple(exponents))


APART = """
apart (float[2, 2] x) => (float[2, 1] y)
<float[2, 4] w0 = {3e5, 1.0, 2e-9, 3e-9, 2e5, -1.0, 3e-9, 2e-9}, float[4] b0 = {1e5, 0.5, 1e-9, 1e-9},
 float[4, 1] w1 = {2e-5, 0.5, 3e8, 2e8}>
{
  [first] h = MatMul(x, w0)
  [bias] g = Add(h, b0)
  [act] a = Relu(g)
  [second] y = MatMul(a, w1)
}
"""
"""Channels of 1e5, 1 and 1e-9, which no one scale holds in half."""

IMAGES = """
images (float[1, 1, 4, 4] x) => (float[1, 1, 1, 1] y)
<float[3, 1, 1, 1] k0 = {3e5, 1.0, 2e-9}, float[3] b0 = {1e5, 0.5, 1e-9}, float[1, 3, 2, 2] k1 =
 {2e-5, 2e-5, 2e-5, 2e-5, 0.5, 0.5, 0.5, 0.5, 3e8, 3e8, 3e8, 3e8}>
{
  [first] h = Conv(x, k0, b0)
  [act] a = Relu(h)
  [pool] p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(a)
  [second] y = Conv(p, k1)
}
"""


@pytest.mark.parametrize(("text", "shape"), [(APART, (2, 2)), (IMAGES, (1, 1, 4, 4))], ids=["linear", "images"])
def test_channels_that_no_one_scale_holds(text: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    """One exponent leaves islands; with one for each channel, nothing overflows or vanishes, and the bits are the same."""
    model = prepared(text)
    monkeypatch.setattr(weights, "PIECE", 5)  # none of the weights is one piece
    feeds = [{"x": np.random.default_rng(1).uniform(0.5, 1.5, shape).astype(np.float32)}]

    found = _rescaled(model, feeds)

    assert found.certificate is not None
    assert any(isinstance(each.exponent, Channels) for each in found.certificate.constants)
    assert 0 == found.certificate.after.nodes < found.certificate.before.nodes
    assert [] == differing_bits(model, found.model, feeds)
    profile = observe(found.model, Samples(tuple(feeds), "the test"))
    assert all(
        2.0**-14 < each.smallest and each.largest < 65504 for name, each in profile.ranges.items() if name != "x"
    )


def test_weights_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch):
    """The largest and the ordinary weight of each channel, of a matrix and of its transpose, and of zeros."""
    monkeypatch.setattr(weights, "PIECE", 3)
    numbers = np.float32([[0.5, -96.0, 0.0], [0.5, 4.0, 0.0], [0.75, 5.0, 0.0], [-3.0, 6.0, 0.0]])

    highest, ordinary = weights_by_channel(ir.tensor(numbers), np.arange(3), 3)
    assert [np.log2(3), np.log2(96), -np.inf] == highest.tolist()
    assert [-1.0, 2.0, np.inf] == ordinary.tolist()
    by_row, _ = weights_by_channel(ir.tensor(numbers.T.copy()), np.arange(3).reshape(3, 1), 3)
    assert highest.tolist() == by_row.tolist()


def test_channels_that_one_scale_holds_are_left_alone():
    """Where the scalar program brings all into range, no channel gets a scale of its own."""
    model = prepared(APART.replace("2e-9", "3e4").replace("3e-9", "3e4").replace("e8", "e-4"))
    feeds = [{"x": np.random.default_rng(1).uniform(0.5, 1.5, (2, 2)).astype(np.float32)}]

    found = _rescaled(model, feeds)

    assert found.certificate is not None
    assert not any(isinstance(each.exponent, Channels) for each in found.certificate.constants)


def _rescaled(model: ir.Model, feeds: list[dict[str, Any]]) -> Rescaling:
    return rescale_prepared(model, feeds, observe(model, Samples(tuple(feeds), "the test")))


def test_composed_certificate():
    """Exponents of both steps are added; a constant that was a copy keeps its source."""
    model = _model(BODIES["two linear layers"])
    first, one = _scaled(model, [1, 2, 3, 4])
    second, two = _scaled(first, [1, -2, 3, 0])

    assert [] == check_rescaled(model, second, composed(one, two))
