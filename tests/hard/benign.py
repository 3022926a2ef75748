"""Models that look dangerous but are accurate in half: a plan that leaves much in FP32 fails."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .build import FLOAT_MIN, Draw, HardModel, Net, model


def normal(*shape: int, scale: float = 1.0) -> Draw:
    """Samples of one float input `x`."""
    return lambda rng: {"x": rng.normal(0, scale, (4, *shape))}


@model("benign", share=1.0)
def hundreds(net: Net) -> HardModel:
    """Activations of about 800 through six layers of MatMul, Add and Relu."""
    x = net.input("x", 64)
    return net.finish(normal(64, scale=800), y=net.mlp(x, 64, 128, 128, 128, 64, 64, 16))


@model("benign", share=1.0)
def thousands(net: Net) -> HardModel:
    """Activations of about 5,000, to some 20,000 at most, in a stack of MatMul and Relu."""
    x = net.input("x", 64)
    return net.finish(normal(64, scale=4000), y=net.mlp(x, 64, 128, 64, 64, 16))


@model("benign", share=1.0)
def twenty_thousand(net: Net) -> HardModel:
    """Bounded activations of 20,000, which half holds as well as those of 1."""
    x = net.input("x", 64)
    h = net.Tanh(net.linear(x, 64, 64)) * 20000.0
    h = net.Relu(net.linear(h, 64, 64, gain=0.4))
    h = net.Relu(net.linear(h, 64, 64, gain=0.7))
    return net.finish(normal(64), y=net.linear(h, 64, 16, gain=0.7))


@model("benign", share=1.0)
def layernorm_operator(net: Net) -> HardModel:
    """LayerNormalization, the operator, over activations of 5,000: its statistics are FP32 inside the kernel."""
    x = net.input("x", 16, 64)
    for _ in range(2):
        x = x + net.linear(net.Relu(net.linear(net.layernorm_op(x, 64), 64, 128)), 128, 64, gain=4000)
    return net.finish(normal(16, 64, scale=4000), y=net.linear(net.layernorm_op(x, 64), 64, 32))


@model("benign", share=1.0)
def plain_attention(net: Net) -> HardModel:
    """Attention with scores of a few units, Softmax and LayerNormalization as operators."""
    x = net.input("x", 16, 64)
    h = net.layernorm_op(x + net.attention(x, 64, 4), 64)
    return net.finish(normal(16, 64, scale=1.5), y=net.layernorm_op(h + net.mlp(h, 64, 128, 64), 64))


@model("benign", share=1.0)
def causal_where(net: Net) -> HardModel:
    """A causal mask by Where with finfo.min: it becomes -inf in half, and no row is without a finite score."""
    x = net.input("x", 16, 64)
    seen = np.tril(np.ones((16, 16), bool))
    h = x + net.attention(x, 64, 4, lambda s: net.Softmax(net.Where(seen, s, FLOAT_MIN), axis=-1))
    return net.finish(normal(16, 64), y=net.mlp(h, 64, 128, 64))


@model("benign", share=1.0)
def mask_of_10000(net: Net) -> HardModel:
    """BERT's first mask, (1 - mask) * -10000, within half's range."""
    x, mask = net.input("x", 16, 64), net.input("mask", 16, dtype=np.int64)
    bias = (1.0 - net.unsqueeze(net.cast(mask, np.float32), 1, 2)) * -10000.0
    h = net.layernorm_op(x + net.attention(x, 64, 4, lambda s: net.Softmax(s + bias, axis=-1)), 64)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, (4, 16, 64)), "mask": np.arange(16) < rng.integers(2, 17, (4, 1))}

    return net.finish(draw, y=net.mlp(h, 64, 128, 32))


@model("benign", opset=20, share=1.0)
def gelu_operator(net: Net) -> HardModel:
    """The Gelu operator on activations of 300, far beyond where its bend is."""
    x = net.input("x", 16, 64)
    return net.finish(normal(16, 64, scale=300), y=net.mlp(x, 64, 128, 128, 64, 32, act="Gelu"))


@model("benign", share=1.0)
def gelu_tanh_saturated(net: Net) -> HardModel:
    """Gelu by tanh written out on activations of 50: x^3 becomes infinite in half, and tanh makes 1 of it."""
    x = net.input("x", 16, 64)
    for _ in range(3):
        h = net.linear(x, 64, 64, gain=1.2)
        x = h * 0.5 * (1.0 + net.Tanh((h + h**3.0 * 0.044715) * math.sqrt(2 / math.pi)))
    return net.finish(normal(16, 64, scale=50), y=net.linear(x, 64, 32))


@model("benign", share=1.0)
def gelu_erf(net: Net) -> HardModel:
    """Gelu by Erf written out, as exporters do, on ordinary activations."""
    x = net.input("x", 16, 64)
    for _ in range(3):
        h = net.linear(x, 64, 64, gain=1.5)
        x = h * (net.Erf(h / math.sqrt(2)) + 1.0) * 0.5
    return net.finish(normal(16, 64), y=net.linear(x, 64, 32))


@model("benign", opset=13, share=1.0)
def conv_batchnorm(net: Net) -> HardModel:
    """A residual ConvNet with BatchNormalization of ordinary statistics."""
    h = net.Relu(net.conv(net.input("x", 3, 16, 16), 3, 32))
    for _ in range(2):
        branch = net.conv(h, 32, 32)
        branch = net.BatchNormalization(
            branch, net.weight(32, scale=0.1, offset=1), net.weight(32), net.weight(32), net.rng.uniform(0.5, 2, 32)
        )
        h = net.Relu(h + net.conv(net.Relu(branch), 32, 32))
    return net.finish(normal(3, 16, 16), y=net.linear(net.Flatten(net.GlobalAveragePool(h)), 32, 16))


@model("benign", share=1.0)
def pooled_features(net: Net) -> HardModel:
    """GlobalAveragePool of 1,024 pixels at 5,000 each: the operator never stores the sum."""
    x = net.input("x", 3, 32, 32)
    h = net.Relu(net.conv(net.Relu(net.conv(x, 3, 16)), 16, 32))
    return net.finish(normal(3, 32, 32, scale=5000), y=net.mlp(net.Flatten(net.GlobalAveragePool(h)), 32, 64, 16))


@model("benign", share=1.0)
def high_residual(net: Net) -> HardModel:
    """A residual stream that grows to 30,000 and stays within range; Relu and Add only."""
    x = net.input("x", 64)
    h = net.Tanh(x) * 3000.0
    for _ in range(3):
        h = h + net.Relu(net.linear(h, 64, 64, gain=0.9))
    return net.finish(normal(64), y=net.linear(h, 64, 16, gain=0.5))


@model("benign", share=1.0)
def large_bias(net: Net) -> HardModel:
    """Biases of 3,000 beside products of 1,000, with Relu."""
    h = net.input("x", 64)
    for wide, out in ((64, 128), (128, 128), (128, 64)):
        h = net.Relu(net.MatMul(h, net.weight(wide, out, scale=wide**-0.5)) + net.weight(out, scale=3000))
    return net.finish(normal(64, scale=1000), y=net.linear(h, 64, 16))


@model("benign", share=1.0)
def scaled_down_after(net: Net) -> HardModel:
    """Products of up to 40,000, multiplied by 0.001 right after."""
    x = net.input("x", 64)
    for _ in range(3):
        x = net.Tanh(net.linear(x, 64, 64, gain=8000.0) * 0.0003) * 1.5
    return net.finish(normal(64), y=net.linear(x, 64, 16))


@model("benign", opset=11, share=1.0)
def saturated_gates(net: Net) -> HardModel:
    """Gates by Sigmoid and Tanh whose inputs of 200 leave them at 0 and 1."""
    x = net.input("x", 64)
    for _ in range(2):
        gate = net.Sigmoid(net.linear(x, 64, 64, gain=2.0))
        x = x * gate + net.Tanh(net.linear(x, 64, 64)) * (1.0 - gate)
    return net.finish(normal(64, scale=200), y=net.linear(x, 64, 16))


@model("benign", share=1.0)
def instance_norm_operator(net: Net) -> HardModel:
    """InstanceNormalization, the operator, between convolutions on values of 1,000."""
    h = net.conv(net.input("x", 3, 16, 16), 3, 32)
    for _ in range(2):
        h = net.InstanceNormalization(h, net.weight(32, scale=0.1, offset=1), net.weight(32, scale=0.1))
        h = net.conv(net.Relu(h), 32, 32)
    return net.finish(normal(3, 16, 16, scale=1000), y=net.conv(h, 32, 8))
