"""Small networks of ordinary shapes, drawn from seeds: what predictions are held against."""

from __future__ import annotations

import functools
from collections.abc import Callable

from tests.hard.build import HardModel, Net, Tensor


def _built(
    name: str, fill: Callable[[Net, Tensor], dict[str, Tensor]], shape: tuple[int, ...], rows: int, opset: int = 20
) -> HardModel:
    net = Net(name, "planning", opset, 0.9, "an ordinary network")
    x = net.input("x", *shape)
    return net.finish(lambda rng: {"x": rng.standard_normal((rows, *shape))}, **fill(net, x))


def _mlp(net: Net, x: Tensor) -> dict[str, Tensor]:
    return {"y": net.mlp(x, *[64] * 6)}


def _tanh(net: Net, x: Tensor) -> dict[str, Tensor]:
    return {"y": net.mlp(x, *[64] * 6, act="Tanh")}


def _residual(net: Net, x: Tensor) -> dict[str, Tensor]:
    for _ in range(4):
        x = x + net.mlp(net.layernorm_op(x, 64), 64, 128, 64, act="Gelu")
    return {"y": x}


def _attention(net: Net, x: Tensor) -> dict[str, Tensor]:
    for _ in range(2):
        x = x + net.attention(net.layernorm_op(x, 64), 64, 4)
        x = x + net.mlp(net.layernorm_op(x, 64), 64, 128, 64, act="Gelu")
    return {"y": net.linear(x, 64, 8)}


def _convolutions(net: Net, x: Tensor) -> dict[str, Tensor]:
    x = net.op("Relu", net.conv(x, 3, 16))
    x = net.op("Relu", net.conv(x, 16, 16, gain=1.4))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.conv(x, 16, 32, gain=1.4))
    return {"y": net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 32, 10)}


def _primitives(net: Net, x: Tensor) -> dict[str, Tensor]:
    for _ in range(2):
        x = x + net.mlp(net.layernorm(x, 64), 64, 64)
    return {"y": x, "p": net.op("Softmax", net.linear(x, 64, 10), axis=-1)}


def _wide(net: Net, x: Tensor) -> dict[str, Tensor]:
    return {"y": net.mlp(x, *[256] * 7)}


SHAPES: dict[str, Callable[[], HardModel]] = {
    "mlp": functools.cache(lambda: _built("mlp", _mlp, (64,), 64)),
    "tanh": functools.cache(lambda: _built("tanh", _tanh, (64,), 64)),
    "residual": functools.cache(lambda: _built("residual", _residual, (64,), 64)),
    "attention": functools.cache(lambda: _built("attention", _attention, (8, 64), 8)),
    "convolutions": functools.cache(lambda: _built("convolutions", _convolutions, (3, 16, 16), 8)),
    "primitives": functools.cache(lambda: _built("primitives", _primitives, (64,), 64, opset=18)),
}

wide = functools.cache(lambda: _built("wide", _wide, (256,), 128))
"""Six layers wide enough that half is worth its casts anywhere."""
