"""Decisions near the output: the nodes right before them stay single, the network before does not."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from demi.accuracy.compare import relative_l2
from demi.calibration.emulation.widen import widen
from demi.calibration.sessions import session_for
from demi.exporter.api import Converted, convert
from demi.exporter.planning.decision_margins import is_layer, stages_before
from demi.exporter.planning.decisions import decides_by, is_quantity, safety
from demi.exporter.planning.repair_state import Graph
from demi.plan import Reason
from tests.hard.build import HardModel, Net, Tensor
from tests.models import node, prepared

CHAIN = f"""m (float[n, 32] x) => (int64[n] y)
<float[32, 32] w = {{{", ".join(["0.1"] * 1024)}}}, float[32] b = {{{", ".join(["0.1"] * 32)}}}, int64 last = {{1}}>
{{
  [first] a = MatMul(x, w)
  [act] c = Relu(a)
  [second] d = MatMul(c, w)
  [bias] e = Add(d, b)
  [pick] y = ArgMax <axis = 1, keepdims = 0> (e)
}}"""


def trunk(net: Net, layers: int = 6) -> Tensor:
    """A few convolutions: the part that must become half."""
    x, wide = net.input("x", 4, 16, 16), 4
    for _ in range(layers):
        x, wide = net.Relu(net.conv(x, wide, 32, gain=1.5)), 32
    return x


def pooled(net: Net) -> Tensor:
    """The same, as one vector for each image."""
    return net.Reshape(net.GlobalAveragePool(trunk(net)), [0, 32])


def sampled_at_exact_places(net: Net) -> HardModel:
    """Features sampled at positions that the caller passes."""
    features, places = trunk(net), net.input("grid", 16, 16, 2)
    return finish(net, places=True, y=net.GridSample(features, places))


def class_of_close_logits(net: Net) -> HardModel:
    """The best of fifty classes, whose logits are close and far from zero."""
    return finish(net, ids=net.ArgMax(net.linear(pooled(net), 32, 50) * 0.1 + 5.0, axis=1, keepdims=0))


def class_of_each_pixel(net: Net) -> HardModel:
    """The best class of each pixel: some of them are always close."""
    return finish(net, ids=net.ArgMax(net.conv(trunk(net), 32, 10, 1), axis=1, keepdims=0))


def mask_by_threshold(net: Net) -> HardModel:
    """Pixels above one half."""
    return finish(net, mask=net.Greater(net.Sigmoid(net.conv(trunk(net), 32, 1, 1)), 0.5))


def row_of_the_best(net: Net) -> HardModel:
    """A row of a table by an argmax."""
    best = net.ArgMax(net.linear(pooled(net), 32, 20), axis=1, keepdims=0)
    return finish(net, y=net.Gather(net.weight(20, 8), best))


def quantized_between(net: Net) -> HardModel:
    """Features rounded to bytes and back, before the last layer."""
    whole = net.cast(net.Round(net.Clip(trunk(net) * 20.0, 0.0, 127.0)), np.int8)
    return finish(net, y=net.conv(net.cast(whole, np.float32) * 0.05, 32, 8))


def quantized_by_operators(net: Net) -> HardModel:
    """The same by QuantizeLinear and DequantizeLinear."""
    scale, zero = np.float32(0.02), np.uint8(0)
    return finish(
        net, y=net.conv(net.DequantizeLinear(net.QuantizeLinear(trunk(net), scale, zero), scale, zero), 32, 8)
    )


def picture_of_bytes(net: Net) -> HardModel:
    """A picture from 0 to 255."""
    picture = net.Sigmoid(net.conv(trunk(net), 32, 3, 1))
    return finish(net, image=net.cast(net.Round(picture * 255.0), np.uint8))


def mixture_of_experts(net: Net) -> HardModel:
    """Two of eight experts for each token, by a small router: the samples' choices are safe, but not by far."""
    x = net.input("x", 16)
    scores, chosen = net.op("TopK", net.MatMul(x, net.weight(16, 8)), [2], outputs=2, axis=-1)
    answers = net.Einsum(x, net.weight(8, 16, 16), equation="nd,edf->nef")
    picked = net.GatherElements(answers, net.Expand(net.Unsqueeze(chosen, [-1]), [1, 1, 16]), axis=1)
    y = net.ReduceSum(picked * net.Unsqueeze(net.Softmax(scores, axis=-1), [-1]), [1], keepdims=0)
    return net.finish(lambda rng: {"x": rng.normal(0, 1, (64, 16))}, y=y)


def finish(net: Net, *, places: bool = False, **outputs: Tensor) -> HardModel:
    """Return the model with images for calibration and held-out ones."""

    def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
        images = {"x": rng.normal(0, 1, (8, 4, 16, 16))}
        return images | ({"grid": rng.uniform(-1, 1, (8, 16, 16, 2))} if places else {})

    return net.finish(draw, **outputs)


@functools.cache
def made(build: Callable[[Net], HardModel], precision: str = "fp16") -> tuple[HardModel, Converted]:
    """Return a model and its conversion, cached."""
    model = build(Net(build.__name__, "small", 20, 0.8, ""))
    return model, convert(model.model, model.calibration, precision=precision)


def agreement(model: HardModel, result: Converted, output: str) -> float:
    """Return the share of equal elements on held-out inputs."""

    def answers(source: ir.Model) -> np.ndarray:
        with session_for(source) as session:
            return np.concatenate([session.run(feeds)[output] for feeds in model.evaluation])

    return float(np.mean(answers(ir.from_proto(model.model)) == answers(widen(ir.from_proto(result.model)))))


@pytest.mark.parametrize(
    "build",
    [
        sampled_at_exact_places,
        class_of_close_logits,
        class_of_each_pixel,
        mask_by_threshold,
        row_of_the_best,
        quantized_between,
        quantized_by_operators,
        picture_of_bytes,
    ],
)
def test_the_network_is_half(build: Callable[[Net], HardModel]):
    """For every kind of decision at the end, nearly all of the work before it is in half."""
    _, result = made(build)

    assert result.planned.fp32_share.flops < 0.05


@pytest.mark.parametrize(
    ("build", "output"),
    [(class_of_close_logits, "ids"), (class_of_each_pixel, "ids"), (mask_by_threshold, "mask")],
)
def test_choices_agree_on_other_inputs(build: Callable[[Net], HardModel], output: str):
    """Nearly all choices agree on inputs that were not measured; a separate limit holds for the share."""
    model, result = made(build)

    assert "agree >= 0.99" in str(result.comparison.outputs[0].limits)
    assert agreement(model, result, output) >= 0.99


def test_the_last_layer_is_single():
    """The nodes before close choices stay single, with the gap as evidence; at most the last layer is among them."""
    _, result = made(class_of_each_pixel)
    kept = [each for each in result.plan.decisions.values() if each.reason is Reason.SELECTION]

    assert "ArgMax" in {each.op_type for each in kept}
    assert sum(each.op_type == "Conv" for each in kept) <= 1
    assert all("half changes its scores by up to" in each.evidence for each in kept)


def test_a_router_is_single_where_other_inputs_are_closer():
    """The nodes right before a TopK in the middle cost little: among many other tokens, no expert is exchanged."""
    model = mixture_of_experts(Net("mixture_of_experts", "small", 20, 0.8, ""))
    result = convert(model.model, model.calibration[:1])
    feeds = {"x": np.random.default_rng(7).normal(0, 1, (8000, 16)).astype(np.float32)}
    with session_for(ir.from_proto(model.model)) as fp32, session_for(widen(ir.from_proto(result.model))) as half:
        error = relative_l2(fp32.run(feeds)["y"], half.run(feeds)["y"])

    assert error < 0.002
    assert 0 < result.planned.fp32_share.flops < 0.1


class TestStages:
    """The nodes before a decision, from near to far."""

    def test_layers_part_the_stages(self):
        """Stages are the arithmetic right before the decision, the last layer, the nodes before that, and so on."""
        model = prepared(CHAIN)
        graph = Graph(model)
        layers = {each for each in graph.nodes if is_layer(each)}
        stages = stages_before(graph, node(model, "pick"), layers)

        assert [
            {"pick", "bias"},
            {"pick", "bias", "second"},
            {"pick", "bias", "second", "act"},
            {"pick", "bias", "second", "act", "first"},
        ] == [{each.name for each in stage} for stage in stages]

    def test_a_small_product_is_no_layer(self):
        """A product with a small constant, such as the mean over a few bins, is not a layer."""
        model = prepared(
            "m (float[n, 2] x) => (float[n] y) <float[2] bins = {0.0, 1.0}> { [mean] y = MatMul(x, bins) }"
        )

        assert not is_layer(node(model, "mean"))


class TestQuantities:
    """Integers that are only read as numbers."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("(float[n] x) => (float[n] y) { [q] i = Cast <to = 3> (x) y = Cast <to = 1> (i) }", True),
            ("(float[n] x) => (float[n] y) { [q] i = Cast <to = 3> (x) j = Identity(i) y = Cast <to = 1> (j) }", True),
            ("(float[n] x) => (int8[n] y) { [q] y = Cast <to = 3> (x) }", False),
            (
                "(float[n] x) => (float[n] y) <float[2] table = {0.0, 1.0}> "
                "{ [q] i = Cast <to = 7> (x) y = Gather(table, i) }",
                False,
            ),
            (
                "(float[n] x) => (float[n] y) <float s = {0.1}, uint8 z = {0}> "
                "{ [q] i = QuantizeLinear(x, s, z) y = DequantizeLinear(i, s, z) }",
                True,
            ),
        ],
        ids=["cast and back", "moved", "an output", "an index", "by operators"],
    )
    def test_who_makes_them(self, text: str, expected: bool):
        """Integers that are an index or an output are decisions."""
        assert expected == is_quantity(node(prepared(f"m {text}"), "q"))

    def test_how_near_a_step_is(self):
        """A quantized number changes half a step from its value."""
        model = prepared(
            "m (float[2] x) => (uint8[2] y) <float s = {0.5}, uint8 z = {0}> { [q] y = QuantizeLinear(x, s, z) }"
        )
        quantize = node(model, "q")

        assert ["x"] == [value.name for value in decides_by(quantize)]
        assert 2.0 == pytest.approx(safety(quantize, {"x": np.float32([1.0, 1.45])}, {"x": 0.1}))
