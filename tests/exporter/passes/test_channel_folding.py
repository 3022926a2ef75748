"""Constants of single channels, folded into convolutions: the same answers from fewer nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from demi.exporter.passes.channel_folding import fold_channels
from demi.exporter.passes.optimize import optimize
from demi.exporter.passes.prepare import prepare
from demi.tensors import Array
from tests.exporter.planning.helpers import floats
from tests.models import check, ops, run

X = floats(2, 4, 5, 5, seed=1)
FEEDS = {"x": X}

CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b)"
BARE = "c = Conv (x, w)"
SCALED = "m = Mul(c, a) y = Add(m, s)"


def weights(groups: int = 1, kind: str = "Conv", **more: Any) -> dict[str, Array]:
    """Return weights of six channels made from four, a bias, and a scale and a shift of each channel."""
    shape = (6, 4 // groups, 3, 3) if kind == "Conv" else (4, 6 // groups, 3, 3)
    made = {"w": floats(*shape), "b": floats(6, seed=2), "a": floats(6, 1, 1, seed=3), "s": floats(6, 1, 1, seed=4)}
    return made | more


def layered(body: str, arrays: dict[str, Array], outputs: str = "float[2, 6, ?, ?] y", opset: int = 18) -> ir.Model:
    """Return a prepared model of these nodes, with the arrays that they read as its weights."""
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : {opset}]> m (float[2, 4, 5, 5] x{_free(body, arrays)}) => ({outputs}) {{ {body} }}'
    )
    for value in tuple(model.graph.inputs[1:]):
        assert value.name is not None
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(arrays[value.name], name=value.name)
        model.graph.register_initializer(value)
    return prepare(model)


def _free(body: str, arrays: dict[str, Array]) -> str:
    used = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return "".join(f", float[{','.join(map(str, a.shape))}] {name}" for name, a in arrays.items() if name in used)


def folded(model: ir.Model) -> ir.Model:
    """Return the folded copy, whose outputs are those of the model."""
    found = fold_channels(model.clone())
    assert found is not None
    changed = prepare(found)
    check(changed)
    want, got = run(model, FEEDS), run(changed, FEEDS)
    assert [*want] == [*got]
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=2e-5)
    return changed


@pytest.mark.parametrize("layer", [CONV, BARE], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "body", [SCALED, "m = Mul(a, c) y = Sub(m, s)", "y = Div(c, a)"], ids=["Mul, Add", "Mul, Sub", "Div"]
)
def test_what_follows_a_convolution_is_folded(layer: str, body: str):
    """A scale and a shift of every channel become part of the weights and of the bias."""
    assert ["Conv"] == ops(folded(layered(f"{layer} {body}", weights())))


def test_batch_normalization_is_folded():
    """BatchNormalization becomes a scale and a shift."""
    channels = {"g": floats(6, seed=5), "h": floats(6, seed=6), "e": floats(6, seed=7), "v": floats(6, seed=8) ** 2}
    model = layered(f"{CONV} y = BatchNormalization (c, g, h, e, v)", weights(**channels))

    assert ["Conv"] == ops(folded(model))


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_groups_and_transposed_convolutions_keep_their_order_of_channels(kind: str, groups: int):
    """Each channel is multiplied by its own number, wherever the operator has its weights."""
    body = f"p = Mul(x, d) c = {kind} <group = {groups}> (p, w, b) {SCALED}"

    assert [kind] == ops(folded(layered(body, weights(groups, kind, d=floats(4, 1, 1, seed=9)))))


def test_one_number_for_all_channels_is_folded():
    """A scalar, with any number of axes of size one, stands for every channel."""
    arrays = weights(a=floats(1, seed=3), s=floats(1, 1, 1, 1, seed=4))

    assert ["Conv"] == ops(folded(layered(f"{CONV} {SCALED}", arrays)))


BEFORE = weights(d=floats(4, 1, 1, seed=9), t=floats(1, seed=10))


def test_what_precedes_a_convolution_is_folded():
    """A scale and a shift before a convolution that pads nothing become part of its weights and of its bias."""
    assert ["Conv"] == ops(folded(layered("p = Mul(x, d) q = Add(p, t) y = Conv(q, w, b)", BEFORE)))


def test_padding_takes_no_shift():
    """The zeros that a convolution pads with are not shifted: only a scale may pass."""
    model = layered("p = Add(x, t) q = Mul(p, d) y = Conv <pads = [1, 1, 1, 1]> (q, w, b)", BEFORE)

    assert ["Add", "Conv"] == ops(folded(model))


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (f"{CONV} y = Mul(c, a) z = Relu(c)", "float[2, 6, ?, ?] y, float[2, 6, ?, ?] z"),
        (f"{CONV} y = Mul(c, a)", "float[2, 6, ?, ?] c, float[2, 6, ?, ?] y"),
        (f"{CONV} r = Conv <pads = [1, 1, 1, 1]> (x, w, b) q = Mul(c, a) y = Add(q, r)", "float[2, 6, ?, ?] y"),
        (f"{CONV} r = Relu(c) y = Mul(r, a)", "float[2, 6, ?, ?] y"),
        (f"{CONV} y = Mul(c, k)", "float[2, 6, 5, 5] y"),
        (f"{CONV} y = Div(a, c)", "float[2, 6, ?, ?] y"),
    ],
    ids=["another reader", "an output", "shared weights", "another operator between", "by position", "divided by it"],
)
def test_other_products_stay(body: str, outputs: str):
    """Nothing is folded where something else reads the result or the weights, or where channels are not scaled."""
    assert fold_channels(layered(body, weights(k=floats(5, seed=3)), outputs)) is None


@pytest.mark.parametrize("scale", [1e-8, 1e8], ids=["vanish", "overflow"])
def test_weights_that_half_would_lose_stay(scale: float):
    """One channel whose weights would vanish or overflow in FP16 is enough to leave all as it is."""
    scales = np.ones((6, 1, 1), np.float32)
    scales[3] = scale

    assert fold_channels(layered(f"{CONV} y = Mul(c, a)", weights(a=scales))) is None


def test_a_bias_that_half_would_lose_stays():
    """A shift beyond FP16's range is not folded."""
    assert fold_channels(layered(f"{CONV} y = Add(c, s)", weights(s=np.full((1,), 1e5, np.float32)))) is None


def test_batch_normalization_in_training_stays():
    """Its statistics are those of the batch."""
    channels = {"g": floats(6, seed=5), "h": floats(6, seed=6), "e": floats(6, seed=7), "v": floats(6, seed=8) ** 2}
    body = f"{CONV} y, m, n = BatchNormalization <training_mode = 1> (c, g, h, e, v)"

    assert fold_channels(layered(body, weights(**channels))) is None


def test_a_failed_proof_drops_the_folding_alone():
    """References that only the folded model does not meet leave what was optimized before."""
    model = layered("p = Mul(x, d) i = Identity(p) y = Conv (i, w, b)", BEFORE)

    assert ["Conv"] == ops(optimize(model, [FEEDS], [run(model, FEEDS)]))
    assert ["Mul", "Conv"] == ops(optimize(model, [FEEDS], [run(model, FEEDS)], same=0.0))
