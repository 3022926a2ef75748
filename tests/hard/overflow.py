"""Intermediate values beyond 65,504 in models with ordinary outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .build import HardModel, Net, Tensor, model


def hidden(scale: float, *shape: int) -> Any:
    """Samples of one float input `x`."""
    return lambda rng: {"x": rng.normal(0, scale, (3, *shape))}


@model("overflow")
def layernorm_pow(net: Net) -> HardModel:
    """LayerNorm from Sub, Pow, ReduceMean, Sqrt, Div over a residual stream of about 600."""
    x = net.input("x", 16, 64)
    normal = net.layernorm(x, 64)
    return net.finish(hidden(600, 16, 64), y=net.mlp(normal, 64, 128, 64, 32))


@model("overflow", opset=13)
def layernorm_outlier_channels(net: Net) -> HardModel:
    """LayerNorm by Mul(d, d) where two channels carry massive activations (about 3,000), as in large language models."""
    x = net.input("x", 16, 64)
    h = net.linear(x, 64, 64)
    centred = h - net.mean(h)
    variance = net.mean(centred * centred)
    normal = centred * net.Reciprocal(net.Sqrt(variance + 1e-5))
    outliers = np.ones(64)
    outliers[[5, 40]] = 1000.0

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 3, (3, 16, 64)) * outliers}

    return net.finish(draw, y=net.mlp(normal * net.weight(64, scale=0.2, offset=1), 64, 128, 64, 16))


@model("overflow")
def rmsnorm_pow(net: Net) -> HardModel:
    """RMSNorm as LLaMA writes it, before a gated feed-forward, over activations of about 500."""
    x = net.input("x", 16, 64)
    normal = net.rmsnorm(x, 64)
    gate = net.linear(normal, 64, 128)
    up = net.linear(normal, 64, 128)
    y = net.linear(gate * net.Sigmoid(gate) * up, 128, 64)
    return net.finish(hidden(500, 16, 64), y=y)


@model("overflow")
def rmsnorm_sum_square(net: Net) -> HardModel:
    """RMSNorm by ReduceSumSquare over 128 channels of about 60: the sum of squares is 460,000."""
    x = net.input("x", 8, 128)
    h = net.linear(x, 128, 128)
    root = net.Sqrt(net.reduce("ReduceSumSquare", h) / 128.0 + 1e-6)
    return net.finish(hidden(60, 8, 128), y=net.mlp(h / root, 128, 64, 64, 32))


# The head reads a LayerNormalization in FP32: a cast of its input costs more than so small a product saves.
@model("overflow", share=0.85)
def growing_residual(net: Net) -> HardModel:
    """A pre-norm residual stream to which each block adds 30,000 in a few channels; a final norm hides it."""
    x = net.input("x", 8, 64)
    drift = np.where(np.arange(64) % 8 == 0, 30000.0, 0.0) * np.where(np.arange(64) % 16 == 0, -1, 1)
    for _ in range(4):
        x = x + (net.linear(net.Relu(net.linear(net.layernorm_op(x, 64), 64, 64)), 64, 64, gain=4000.0) + drift)
    return net.finish(hidden(2000, 8, 64), y=net.linear(net.layernorm_op(x, 64), 64, 32))


@model("overflow", share=0.85)
def relu_attention(net: Net) -> HardModel:
    """ReLU attention: scores are scaled only after the product, which passes 65,504.

    The product of queries and keys must stay FP32: one of 7 MatMuls.
    """
    x = net.input("x", 16, 64)
    q, k, v = (net.linear(x, 64, 64, gain=gain) for gain in (1.2, 1.2, 0.05))
    scores = net.MatMul(q, net.Transpose(k, perm=[0, 2, 1]), hard=True)
    weights = net.Relu(scores / 8.0) / 16.0
    return net.finish(hidden(60, 16, 64), y=net.mlp(net.MatMul(weights, v), 64, 64, 32))


@model("overflow", share=0.8)
def memory_lookup(net: Net) -> HardModel:
    """Softmax over products of 100,000 with stored patterns, divided by 8 only afterwards (a Hopfield layer).

    The product itself must stay FP32: one of 5 MatMuls. The answer is clear: one pattern wins by far.
    """
    x = net.input("x", 8, 64)
    patterns = 40.0 * np.sign(net.weight(32, 64))
    scores = net.MatMul(x, patterns.T, hard=True) / 8.0
    found = net.MatMul(net.Softmax(scores, axis=-1), net.weight(32, 64))

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": patterns[rng.integers(0, 32, (3, 8))] + rng.normal(0, 8, (3, 8, 64))}

    return net.finish(draw, y=net.mlp(found, 64, 64, 64, 32))


@model("overflow")
def softplus_by_exp(net: Net) -> HardModel:
    """log(1 + exp(x)) written out, for x up to about 30."""
    x = net.input("x", 16, 32)
    h = net.linear(x, 32, 64)
    positive = net.Log(net.Exp(h) + 1.0)
    return net.finish(hidden(8, 16, 32), y=net.mlp(positive, 64, 64, 64, 16))


@model("overflow", opset=11)
def mish_algebraic(net: Net) -> HardModel:
    """Mish as x * n / (n + 2), n = e^x (e^x + 2), in a convolutional net."""
    x = net.input("x", 3, 16, 16)
    h = net.conv(x, 3, 16)
    e = net.Exp(h)
    n = e * (e + 2.0)
    h = h * n / (n + 2.0)
    h = net.Relu(net.conv(h, 16, 32))
    return net.finish(hidden(4, 3, 16, 16), y=net.conv(h, 32, 8))


@model("overflow")
def logsumexp_naive(net: Net) -> HardModel:
    """Log-probabilities as x - log(sum(exp(x))), logits to about 20."""
    x = net.input("x", 16, 32)
    logits = net.mlp(x, 32, 64, 64, 32)
    return net.finish(hidden(4, 16, 32), logp=logits - net.Log(net.sum(net.Exp(logits))))


@model("overflow")
def softmax_late_max(net: Net) -> HardModel:
    """Softmax as exp(x) / exp(max) / sum: the maximum is subtracted after the exponential."""
    x = net.input("x", 16, 32)
    logits = net.linear(x, 32, 32)
    e = net.Exp(logits) / net.Exp(net.reduce("ReduceMax", logits))
    return net.finish(hidden(6, 16, 32), y=net.mlp(e / net.sum(e), 32, 64, 64, 32))


@model("overflow")
def poisson_rate(net: Net) -> HardModel:
    """Counts from a log rate: exp(11 +- 2) per year, times an exposure in years of about 1e-5."""
    x, exposure = net.input("x", 32), net.input("exposure", 1)
    rate = net.Exp(net.mlp(x, 32, 64, 64, 8) + 11.5)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 0.7, (8, 32)), "exposure": rng.uniform(1e-5, 4e-5, (8, 1))}

    return net.finish(draw, counts=rate * exposure)


@model("overflow")
def descriptor_norm(net: Net) -> HardModel:
    """A flattened descriptor of 16,384 values of about 800, normalized by ReduceL2: the norm is 100,000."""
    x = net.input("x", 16, 32, 32)
    flat = net.Flatten(net.conv(x, 16, 16), axis=1)
    unit = flat / net.Clip(net.reduce("ReduceL2", flat, [1]), 1e-12)
    features = net.mean(net.Reshape(unit * 128.0, [0, 16, -1]) ** 2.0, [2], keep=False)
    return net.finish(hidden(800, 16, 32, 32), y=net.mlp(features, 16, 64, 64, 8))


@model("overflow")
def l2_norm_by_root(net: Net) -> HardModel:
    """Cosine logits: embeddings of about 50 normalized by Sqrt(ReduceSumSquare)."""
    x = net.input("x", 128)
    h = net.mlp(x, 128, 128, 64)
    unit = h / net.Sqrt(net.reduce("ReduceSumSquare", h))
    prototypes = net.weight(64, 32)
    return net.finish(hidden(50, 128), y=net.MatMul(unit, prototypes / np.linalg.norm(prototypes, axis=0)) * 20.0)


@model("overflow")
def statistics_pooling(net: Net) -> HardModel:
    """Mean and deviation over 4,096 frames as sums divided by the count (x-vectors)."""
    x = net.input("x", 4096, 16)
    h = net.Relu(net.linear(x, 16, 32) + 25.0)
    mean = net.sum(h, [1], keep=False) / 4096.0
    spread = net.Sqrt(net.sum((h - net.unsqueeze(mean, 1)) ** 2.0, [1], keep=False) / 4096.0)
    pooled = net.Concat(mean * 0.1, spread * 0.1, axis=-1)
    return net.finish(hidden(8, 4096, 16), y=net.mlp(pooled, 64, 64, 64, 16))


@model("overflow")
def squeeze_excite_sum(net: Net) -> HardModel:
    """A squeeze-and-excite block that sums 64 x 64 pixels, then divides; a GlobalAveragePool beside it is harmless."""
    x = net.input("x", 8, 64, 64)
    h = net.Relu(net.conv(x, 8, 16) + 10.0)
    squeezed = net.sum(h, [2, 3], keep=False) / 4096.0
    gate = net.Sigmoid(net.mlp(squeezed * 0.1, 16, 16, 16))
    h = net.conv(h * net.Reshape(gate, [0, 16, 1, 1]), 16, 16)
    return net.finish(hidden(30, 8, 64, 64), y=net.Flatten(net.GlobalAveragePool(net.Relu(h))))


@model("overflow")
def fixed_point_grid(net: Net) -> HardModel:
    """Rounding to a grid of 1e-5: times 100,000, Round, times 1e-5."""
    x = net.input("x", 32)
    h = net.linear(x, 32, 64)
    h = net.Round(h * 1e5) * 1e-5
    return net.finish(hidden(2, 32), y=net.mlp(h, 64, 64, 64, 16))


@model("overflow")
def pressure_in_pascal(net: Net) -> HardModel:
    """Air pressure in pascal (about 101,325), standardized inside the model: the input itself is beyond half."""
    x = net.input("x", 32)
    return net.finish(
        lambda rng: {"x": rng.normal(101325, 2500, (8, 32))}, y=net.mlp((x - 101325.0) / 2500.0, 32, 64, 64, 64, 8)
    )


@model("overflow", opset=15)
def batchnorm_of_pixels(net: Net) -> HardModel:
    """Convolutions on raw pixels (0 to 255): running variances of 1e5 to 1e6 in BatchNormalization."""
    x = net.input("x", 3, 16, 16)
    h = net.conv(x, 3, 32, gain=5.0)
    variance = net.rng.uniform(1e5, 1e6, 32)
    h = net.BatchNormalization(h, net.weight(32, scale=0.1, offset=1), net.weight(32), net.weight(32), variance)
    h = net.Relu(net.conv(net.Relu(h), 32, 32))
    h = net.Relu(net.conv(h, 32, 32))
    return net.finish(lambda rng: {"x": rng.integers(0, 256, (2, 3, 16, 16))}, y=net.conv(h, 32, 8))


@model("overflow")
def variance_by_moments(net: Net) -> HardModel:
    """Instance normalization of 12-bit images through E[x^2] - E[x]^2."""
    x = net.input("x", 2, 16, 16)
    mean = net.mean(x, [2, 3])
    variance = net.mean(x * x, [2, 3]) - mean * mean
    h = (x - mean) / net.Sqrt(variance + 1e-3)
    for wide in (2, 32, 32):
        h = net.Relu(net.conv(h, wide, 32))
    return net.finish(lambda rng: {"x": rng.integers(0, 4096, (2, 2, 16, 16))}, y=net.conv(h, 32, 8))


@model("overflow")
def distance_kernel(net: Net) -> HardModel:
    """Radial basis functions of squared distances between points in millimetres (to 1,000 apart)."""
    points, features = net.input("points", 24, 3), net.input("features", 24, 32)
    gap = net.unsqueeze(points, 2) - net.unsqueeze(points, 1)
    square = net.sum(gap * gap, keep=False)
    weights = net.Exp(square / -80000.0)
    h = net.MatMul(weights, net.linear(features, 32, 64))

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"points": rng.uniform(-400, 400, (3, 24, 3)), "features": rng.normal(0, 1, (3, 24, 32))}

    return net.finish(draw, y=net.mlp(h, 64, 64, 32))


@model("overflow", share=0.8)
def gram_matrix(net: Net) -> HardModel:
    """Style features: F F^T over 1,024 pixels, divided by the count afterwards; that product must stay FP32 (1 of 5)."""
    x = net.input("x", 8, 32, 32)
    maps = net.Reshape(net.Relu(net.conv(x, 8, 16)), [0, 16, -1])
    gram = net.MatMul(maps, net.Transpose(maps, perm=[0, 2, 1]), hard=True) / 16384.0
    return net.finish(hidden(30, 8, 32, 32), y=net.mlp(net.Flatten(gram) * 0.2, 256, 64, 64, 16))


@model("overflow")
def gem_pooling(net: Net) -> HardModel:
    """Generalized-mean pooling: clamp, cube, mean, cube root, over activations of about 60."""
    x = net.input("x", 8, 16, 16)
    h = net.conv(net.Relu(net.conv(x, 8, 32)), 32, 32)
    pooled = net.mean(net.Clip(h, 1e-6) ** 3.0, [2, 3], keep=False) ** (1 / 3)
    return net.finish(hidden(60, 8, 16, 16), y=net.mlp(pooled * 0.05, 32, 64, 16))


@model("overflow")
def kurtosis_pooling(net: Net) -> HardModel:
    """Fourth moments over time, relative to the squared variance (signals of about 25)."""
    x = net.input("x", 256, 16)
    d = x - net.mean(x, [1])
    variance = net.mean(d**2.0, [1], keep=False)
    kurtosis = net.mean(d**4.0, [1], keep=False) / variance**2.0
    h = net.Concat(kurtosis - 3.0, net.Log(variance) - 6.0, axis=-1)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.standard_t(5, (3, 256, 16)) * rng.uniform(15, 40, (3, 1, 16))}

    return net.finish(draw, y=net.mlp(h, 32, 64, 64, 64, 8))


@model("overflow")
def polynomial_features(net: Net) -> HardModel:
    """x, x^2 and x^3 side by side, each put on one scale before the layers."""
    x = net.input("x", 16)
    features = net.Concat(x / 50.0, x**2.0 / 2500.0, x**3.0 / 125000.0, axis=-1)
    return net.finish(hidden(40, 16), y=net.mlp(features, 48, 64, 64, 64, 8))


@model("overflow")
def factorization_machine(net: Net) -> HardModel:
    """Pairwise interactions as the square of a sum minus the sum of squares, halved and scaled down."""
    x = net.input("x", 20, 16)
    h = net.linear(x, 16, 32) + net.weight(32, scale=10)
    total = net.sum(h, [1], keep=False)
    pairs = (total * total - net.sum(h * h, [1], keep=False)) * 0.5 / 20000.0
    return net.finish(hidden(25, 20, 16), y=net.mlp(pairs, 32, 64, 64, 16))


@model("overflow", share=0.8)
def audio_power(net: Net) -> HardModel:
    """Log-mel energies of 16-bit audio: the mel product reads powers of 1e7 and must stay FP32 (1 of 5)."""
    x = net.input("x", 1, 2048)
    time = np.arange(256)
    angle = 2 * math.pi * np.outer(np.arange(1, 33), time) / 256
    basis = np.concatenate([np.cos(angle), np.sin(angle)])[:, None, :] * np.hanning(256)
    spectrum = net.Transpose(net.Conv(x, basis, strides=[128]), perm=[0, 2, 1])
    power = net.slice(spectrum, 0, 32) ** 2.0 + net.slice(spectrum, 32, 64) ** 2.0
    mel = net.MatMul(power, np.abs(net.weight(32, 16)), hard=True)
    features = (net.Log(mel + 1.0) - 17.0) / 2.0
    return net.finish(hidden(300, 1, 2048), y=net.mlp(features, 16, 64, 64, 16))


@model("overflow")
def box_overlap(net: Net) -> HardModel:
    """Intersection over union of boxes in pixels: areas of up to 640 x 640, then layers on the overlaps."""
    boxes, features = net.input("boxes", 12, 4), net.input("features", 12, 32)
    low, high = net.slice(boxes, 0, 2), net.slice(boxes, 2, 4)

    def area(size: Tensor) -> Tensor:
        return net.slice(size, 0, 1) * net.slice(size, 1, 2)

    own = net.Squeeze(area(high - low), [-1])
    corner = net.Min(net.unsqueeze(high, 2), net.unsqueeze(high, 1))
    overlap = net.Max(corner - net.Max(net.unsqueeze(low, 2), net.unsqueeze(low, 1)), 0.0)
    inter = net.Squeeze(area(overlap), [-1])
    iou = inter / (net.unsqueeze(own, 2) + net.unsqueeze(own, 1) - inter)
    h = net.MatMul(iou, net.linear(features, 32, 64))

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        low = rng.uniform(0, 250, (3, 12, 2))
        return {
            "boxes": np.concatenate([low, low + rng.uniform(200, 390, low.shape)], -1),
            "features": rng.normal(0, 1, (3, 12, 32)),
        }

    return net.finish(draw, y=net.mlp(h, 64, 64, 32), iou=iou)
