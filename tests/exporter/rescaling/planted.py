"""Models that leave half's range as people meet them: each has a range problem that powers of two can repair.

The networks are small and random, and their ranges are those of the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.hard.build import HardModel, Net, Tensor

WIDTH = 32


def t5_like(blocks: int = 4) -> HardModel:
    """T5: RMS normalization in primitives before a gated feed-forward, and a residual stream that grows to 9e4."""
    net = _net("t5_like", t5_like)
    x = _embedded(net, scale=40.0)
    for _ in range(blocks):
        normal = net.rmsnorm(x, WIDTH)
        gate = net.linear(normal, WIDTH, 64)
        up = net.linear(normal, WIDTH, 64)
        x = x + net.linear(gate * net.Sigmoid(gate) * up, 64, WIDTH, gain=12000.0)
    return net.finish(_tokens, y=net.linear(net.rmsnorm(x, WIDTH), WIDTH, 16))


def gemma_like() -> HardModel:
    """Gemma: normalization before and after every layer, by the operator's primitives; the last scales let the residual grow."""
    net = _net("gemma_like", gemma_like)
    x = _embedded(net, scale=1.0) * math.sqrt(WIDTH)
    for block in range(4):
        grown = 8000.0 * (block + 1)
        attended = net.attention(net.rmsnorm(x, WIDTH), WIDTH, 4)
        x = x + net.rmsnorm(attended, WIDTH) * np.full(WIDTH, grown, np.float32)
        normal = net.rmsnorm(x, WIDTH)
        gate = net.linear(normal, WIDTH, 64)
        fed = net.linear(gate * net.Sigmoid(gate) * net.linear(normal, WIDTH, 64), 64, WIDTH)
        x = x + net.rmsnorm(fed, WIDTH) * np.full(WIDTH, grown, np.float32)
    return net.finish(_tokens, y=net.linear(net.rmsnorm(x, WIDTH), WIDTH, 16))


def vae_decoder() -> HardModel:
    """SDXL's VAE: residual blocks of GroupNorm, SiLU and convolutions whose residual passes 65,504."""
    net = _net("vae_decoder", vae_decoder)
    latent = net.input("latent", 4, 8, 8)
    x = net.conv(latent, 4, 16, gain=20.0)
    for block in range(3):
        h = net.conv(_silu(net, _group_norm(net, x)), 16, 16)
        x = x + net.conv(_silu(net, _group_norm(net, h)), 16, 16, gain=30000.0)
        if block == 1:
            x = net.Resize(x, None, np.array([1, 1, 2, 2], np.float32), mode="nearest")
    pixels = net.conv(_silu(net, _group_norm(net, x)), 16, 3)
    return net.finish(lambda rng: {"latent": rng.normal(0, 1, (2, 4, 8, 8))}, pixels=pixels)


def resnet_statistics() -> HardModel:
    """A ResNet on raw pixels, whose first BatchNormalization holds variances of 1e5 to 1e6."""
    net = _net("resnet_statistics", resnet_statistics, opset=15)
    x = net.input("x", 3, 16, 16)
    h = net.conv(x, 3, 16, gain=5.0)
    variance = net.rng.uniform(1e5, 1e6, 16)
    h = net.Relu(
        net.BatchNormalization(h, net.weight(16, scale=0.1, offset=1), net.weight(16), net.weight(16), variance)
    )
    for _ in range(2):
        h = net.Relu(h + net.conv(net.Relu(net.conv(h, 16, 16)), 16, 16))
    return net.finish(lambda rng: {"x": rng.integers(0, 256, (2, 3, 16, 16))}, y=net.conv(h, 16, 8))


def two_tower() -> HardModel:
    """Two towers whose vectors are multiplied as they are, a score of 1e6, and a temperature only afterwards."""
    net = _net("two_tower", two_tower)
    user, item = net.input("user", 16), net.input("item", 16)
    left, right = (net.mlp(each, 16, 64, WIDTH) * 200.0 for each in (user, item))
    score = net.sum(left * right, [-1]) / 50000.0

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {name: rng.normal(0, 1, (8, 16)) for name in ("user", "item")}

    return net.finish(draw, click=net.Sigmoid(score))


PLANTED: dict[str, Callable[[], HardModel]] = {
    each.__name__: each for each in (t5_like, gemma_like, vae_decoder, resnet_statistics, two_tower)
}


def _net(name: str, function: Callable[..., HardModel], opset: int = 18) -> Net:
    return Net(name, "planted", opset, 0.9, function.__doc__ or "")


def _embedded(net: Net, scale: float) -> Tensor:
    ids = net.input("ids", 8, dtype=np.int64)
    return net.Gather(net.weight(100, WIDTH, scale=scale), ids)


def _tokens(rng: np.random.Generator) -> dict[str, Any]:
    return {"ids": rng.integers(0, 100, (3, 8))}


def _silu(net: Net, x: Tensor) -> Tensor:
    return x * net.Sigmoid(x)


def _group_norm(net: Net, x: Tensor) -> Tensor:
    """GroupNorm of 16 channels in 4 groups, as PyTorch's exporter writes it."""
    groups = net.Reshape(x, [0, 4, -1])
    normal = net.InstanceNormalization(groups, np.ones(4, np.float32), np.zeros(4, np.float32), epsilon=1e-6)
    whole = net.Reshape(normal, net.Shape(x))
    return whole * net.weight(16, 1, 1, scale=0.1, offset=1.0) + net.weight(16, 1, 1, scale=0.1)
