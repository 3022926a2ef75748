"""Numbers below half's smallest, and small differences of large numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .build import Draw, HardModel, Net, Tensor, model


def normal(*shape: int, scale: float = 1.0, offset: float = 0.0) -> Draw:
    """Samples of one float input `x`."""
    return lambda rng: {"x": rng.normal(offset, scale, (3, *shape))}


def padded(*shape: int) -> Draw:
    """Sequences `x` whose last tokens are zeros."""

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        x = rng.normal(0, 1, (3, *shape))
        for row, length in zip(x, rng.integers(shape[0] // 2, shape[0], 3), strict=True):
            row[length:] = 0
        return {"x": x}

    return draw


@model("underflow")
def epsilon_in_root(net: Net) -> HardModel:
    """BERT's LayerNorm with its epsilon of 1e-12, where padding tokens are all zeros: 0 / 0 without the epsilon."""
    x = net.input("x", 16, 64)
    return net.finish(padded(16, 64), y=net.mlp(net.layernorm(x, 64, eps=1e-12), 64, 128, 64, 32))


@model("underflow", opset=13)
def epsilon_in_normalize(net: Net) -> HardModel:
    """F.normalize as it is exported (ReduceL2, Clip 1e-12, Expand, Div), with empty rows."""
    x = net.input("x", 16, 64)
    norm = net.Clip(net.reduce("ReduceL2", x), 1e-12)
    unit = x / net.Expand(norm, net.Shape(x))
    return net.finish(padded(16, 64), y=net.mlp(unit * 8.0, 64, 64, 64, 32))


@model("underflow")
def entropy_of_softmax(net: Net) -> HardModel:
    """Uncertainty features -sum(p log(p + 1e-12)) of confident heads: 0 times log 0."""
    x = net.input("x", 16, 32)
    p = net.Softmax(x, axis=-1)
    entropy = -net.sum(p * net.Log(p + 1e-12), keep=False)
    return net.finish(normal(16, 32, scale=6), y=net.mlp(entropy, 16, 64, 64, 64, 8))


@model("underflow")
def gumbel_noise(net: Net) -> HardModel:
    """Gumbel noise from uniform numbers, -log(-log(u + 1e-10) + 1e-10): numbers near 1 round to 1."""
    x, u = net.input("x", 64, 32), net.input("u", 64, 32)
    noise = -net.Log(-net.Log(u + 1e-10) + 1e-10)
    weights = net.Softmax((net.mlp(x, 32, 64, 32) + noise) / 2.0, axis=-1)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, (4, 64, 32)), "u": rng.random((4, 64, 32), np.float32)}

    return net.finish(draw, y=net.mlp(weights, 32, 64, 16))


@model("underflow", share=0.8)
def tiny_weights(net: Net) -> HardModel:
    """A head trained under a loss scale: weights of 1e-7, its output multiplied by 1e6.

    The weights are nearly all lost in half, so this MatMul must stay FP32 (1 of 5).
    """
    x = net.input("x", 32)
    h = net.Relu(net.mlp(x, 32, 64, 64))
    h = net.MatMul(h, net.weight(64, 64, scale=1.2e-7), hard=True) * 1e6
    return net.finish(normal(32), y=net.mlp(h, 64, 64, 8))


@model("underflow")
def nanometres(net: Net) -> HardModel:
    """Lengths in metres, of about 1e-8, brought to nanometres inside the model."""
    x = net.input("x", 32)
    h = (x * 1e9 - 30.0) / 15.0
    return net.finish(lambda rng: {"x": np.abs(rng.normal(3e-8, 1.5e-8, (8, 32)))}, y=net.mlp(h, 32, 64, 64, 64, 8))


@model("underflow")
def rms_of_volts(net: Net) -> HardModel:
    """RMSNorm of electrode signals in volts (1e-4): the squares of 1e-8 vanish."""
    x = net.input("x", 16, 64)
    return net.finish(normal(16, 64, scale=1e-4), y=net.mlp(net.rmsnorm(x, 64, eps=1e-12), 64, 64, 64, 16))


@model("underflow")
def inverse_sigmoid(net: Net) -> HardModel:
    """Reference points of deformable attention: log(x / (1 - x)) close to the borders, clamped at 1e-5."""
    x, features = net.input("x", 16, 4), net.input("features", 16, 32)
    low = net.Clip(x, 1e-5, 1.0)
    high = net.Clip(1.0 - x, 1e-5, 1.0)
    points = net.Log(low / high)
    shift = net.mlp(features, 32, 64, 64, 4)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        edge = 10.0 ** rng.uniform(-5, -1, (3, 16, 4))
        return {
            "x": np.where(rng.random((3, 16, 4)) < 0.5, edge, 1 - edge),
            "features": rng.normal(0, 1, (3, 16, 32)),
        }

    return net.finish(draw, logits=points + shift)


@model("underflow")
def kelvin_anomaly(net: Net) -> HardModel:
    """Temperatures in kelvin, minus their mean over time: a spread of 0.4 on an offset of 288."""
    x = net.input("x", 24, 16)
    d = x - net.mean(x, [1])
    h = d / (net.Sqrt(net.mean(d * d, [1])) + 1e-6)
    return net.finish(normal(24, 16, scale=0.4, offset=288), y=net.mlp(h, 16, 64, 64, 64, 8))


@model("underflow")
def reference_energies(net: Net) -> HardModel:
    """The difference of two conformers' energies, each with reference energies of -300 an atom added first."""
    a, b = net.input("a", 20, 32), net.input("b", 20, 32)
    references = net.weight(20, 1, scale=50, offset=-300)

    def energy(x: Tensor) -> Tensor:
        return net.sum(net.mlp(x, 32, 64, 64, 1) + references, [1], keep=False)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {name: rng.normal(0, 1, (8, 20, 32)) for name in "ab"}

    return net.finish(draw, gap=energy(a) - energy(b))


@model("underflow", share=0.6)
def frame_difference(net: Net) -> HardModel:
    """The difference of two frames' projections, where frames differ by a hundredth, scaled up.

    Both projections must stay FP32 (2 of 6): their results agree in the first three digits.
    """
    now, before = net.input("now", 16, 32), net.input("before", 16, 32)
    w = net.weight(32, 64, scale=0.18)
    change = (net.MatMul(now, w, hard=True) - net.MatMul(before, w, hard=True)) * 100.0

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        x = rng.normal(0, 1, (3, 16, 32))
        return {"before": x, "now": x + rng.normal(0, 0.01, x.shape)}

    return net.finish(draw, y=net.mlp(change, 64, 64, 64, 64, 8))


@model("underflow")
def signal_on_offset(net: Net) -> HardModel:
    """LayerNormalization of a signal of 0.1 that rides on one common offset of 300: the norm magnifies what is lost."""
    x = net.input("x", 16, 64)
    h = net.mlp(x, 64, 128, 64) * 0.1 + 300.0
    return net.finish(normal(16, 64), y=net.mlp(net.layernorm_op(h, 64), 64, 64, 16))


@model("underflow")
def cosine_of_tiny(net: Net) -> HardModel:
    """Cosine similarity of vectors of 1e-4, with products of 1e-8 and an epsilon of 1e-8."""
    a, b = net.input("a", 32, 32), net.input("b", 32, 32)
    norms = net.Sqrt(net.sum(a * a, keep=False)) * net.Sqrt(net.sum(b * b, keep=False))
    cosine = net.sum(a * b, keep=False) / net.Max(norms, 1e-8)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        a = rng.normal(0, 1e-4, (3, 32, 32))
        return {"a": a, "b": a * 0.5 + rng.normal(0, 1e-4, a.shape)}

    return net.finish(draw, y=net.mlp(cosine, 32, 64, 64, 64, 8))


@model("underflow")
def kl_divergence(net: Net) -> HardModel:
    """KL terms p (log p - log q) of two confident softmaxes: log 0 on either side."""
    a, b = net.input("a", 16, 32), net.input("b", 16, 32)
    p, q = net.Softmax(a, axis=-1), net.Softmax(b, axis=-1)
    divergence = net.sum(p * (net.Log(p) - net.Log(q)), keep=False)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        a = rng.normal(0, 6, (3, 16, 32))
        return {"a": a, "b": a + rng.normal(0, 3, a.shape)}

    return net.finish(draw, y=net.mlp(divergence * 0.3, 16, 64, 64, 64, 8))


@model("underflow")
def log_one_plus(net: Net) -> HardModel:
    """log(1 + x) of rates of about 3e-4, per mille afterwards: half has nothing between 1 and 1.001."""
    x = net.input("x", 32)
    h = net.Log(x + 1.0) * 1000.0
    return net.finish(
        lambda rng: {"x": 10.0 ** rng.uniform(-4.5, -2.8, (8, 32))}, y=net.mlp(h - 0.3, 32, 64, 64, 64, 8)
    )


@model("underflow")
def log_returns(net: Net) -> HardModel:
    """Daily log returns log(p_t / p_(t-1)) of prices near 100, over a volatility of half a percent."""
    x = net.input("x", 33)
    returns = net.Log(net.slice(x, 1, 33) / net.slice(x, 0, 32)) / 0.005

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": 100 * np.exp(np.cumsum(rng.normal(0, 0.005, (8, 33)), axis=-1))}

    return net.finish(draw, y=net.mlp(returns, 32, 64, 64, 64, 8))


@model("underflow")
def sequence_likelihood(net: Net) -> HardModel:
    """Beams weighed by the product of 12 token probabilities, about 1e-10, relative to their sum."""
    tokens, states = net.input("tokens", 8, 12), net.input("states", 8, 32)
    likelihood = net.reduce("ReduceProd", tokens)
    weights = likelihood / net.sum(likelihood, [1])
    h = net.sum(weights * net.linear(states, 32, 64), [1], keep=False)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"tokens": rng.uniform(0.05, 0.4, (6, 8, 12)), "states": rng.normal(0, 1, (6, 8, 32))}

    return net.finish(draw, y=net.mlp(h, 64, 64, 64, 8))


@model("underflow")
def cold_gate(net: Net) -> HardModel:
    """Experts chosen by a softmax at a temperature of 1e-6, scores given as an input."""
    x, scores = net.input("x", 16, 32), net.input("scores", 16, 4)
    gates = net.Softmax(scores / 1e-6, axis=-1)
    experts = [net.mlp(x, 32, 32, 16) for _ in range(4)]
    mixed = [expert * net.slice(gates, k, k + 1) for k, expert in enumerate(experts)]

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, (3, 16, 32)), "scores": rng.random((3, 16, 4))}

    return net.finish(draw, y=net.Sum(*mixed))


@model("underflow")
def feature_scaler(net: Net) -> HardModel:
    """A StandardScaler before the layers: coordinates, years, voltages nearly constant around their means."""
    x = net.input("x", 8)
    mean = np.array([52.5163, 13.3777, 2015.5, 229.8, 1013.25, 36.6, 101.3, 999.7])
    scale = np.array([0.004, 0.006, 1.2, 0.05, 0.3, 0.02, 0.01, 0.05])
    return net.finish(
        lambda rng: {"x": rng.normal(mean, scale, (16, 8))}, y=net.mlp((x - mean) / scale, 8, 64, 64, 64, 8)
    )


@model("underflow")
def mixture_likelihood(net: Net) -> HardModel:
    """Log of a sum of Gaussian densities without the log-sum-exp trick: densities of 1e-15 vanish."""
    x = net.input("x", 16, 3)
    gap = net.unsqueeze(x, 2) - net.weight(8, 3, scale=2)
    density = net.Exp(net.sum(gap**2.0, keep=False) * -0.5) * 0.125
    score = net.Log(net.sum(density, keep=False))
    return net.finish(normal(16, 3, scale=3.5), y=net.mlp(score * 0.1, 16, 64, 64, 64, 8))


@model("underflow", share=0.75)
def random_features(net: Net) -> HardModel:
    """Attention by positive random features exp(w x - |x|^2 / 2) of about 1e-7, numerator over denominator.

    The two products of features must stay FP32 (2 of 9).
    """
    x = net.input("x", 16, 32)
    directions = net.weight(32, 64)

    def features(t: Tensor) -> Tensor:
        return net.Exp(net.MatMul(t, directions) - net.sum(t * t) * 0.5) / 8.0

    q, k, v = (net.linear(x, 32, 32) for _ in range(3))
    q, k = features(q), features(k)
    numerator = net.MatMul(q, net.MatMul(net.Transpose(k, perm=[0, 2, 1]), v, hard=True), hard=True)
    h = numerator / net.sum(q * net.sum(k, [1]))
    return net.finish(normal(16, 32), y=net.mlp(h, 32, 64, 16))


@model("underflow")
def ray_sphere(net: Net) -> HardModel:
    """Intersections of rays with a sphere 100 away: -b - sqrt(b^2 - c), a difference of 10,000 and 9,999."""
    origin, ray = net.input("origin", 16, 3), net.input("ray", 16, 3)
    b = net.sum(origin * ray)
    c = net.sum(origin * origin) - 1.0
    hit = net.Sqrt(net.Max(b * b - c, 0.0))
    surface = origin + ray * (-b - hit)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        ray = rng.normal(0, 1, (3, 16, 3))
        ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
        return {"origin": ray * -100 + rng.normal(0, 0.3, ray.shape), "ray": ray}

    return net.finish(draw, y=net.mlp(surface, 3, 64, 64, 64, 3))


@model("underflow")
def variance_on_offset(net: Net) -> HardModel:
    """Channel deviations sqrt(E[x^2] - E[x]^2) for a spread of 0.5 around 30: the difference of 900.25 and 900."""
    x = net.input("x", 8, 16, 16)
    mean = net.mean(x, [2, 3])
    deviation = net.Sqrt(net.mean(x * x, [2, 3]) - mean * mean + 1e-5)
    h = (x - mean) / deviation
    h = net.Relu(net.conv(h, 8, 32))
    h = net.Relu(net.conv(h, 32, 32))
    return net.finish(normal(8, 16, 16, scale=0.5, offset=30), y=net.conv(h, 32, 8))


@model("underflow")
def alpha_compositing(net: Net) -> HardModel:
    """Volume rendering: transmittance exp(cumsum(log(1 - a + 1e-10)) - own) along rays with opaque samples."""
    features, gaps = net.input("features", 32, 16), net.input("gaps", 32, 1)
    h = net.Relu(net.linear(features, 16, 64))
    density = net.Relu(net.linear(h, 64, 1, gain=8.0))
    colour = net.Sigmoid(net.mlp(h, 64, 64, 3))
    alpha = 1.0 - net.Exp(-(density * gaps))
    clear = net.Log(1.0 - alpha + 1e-10)
    weights = alpha * net.Exp(net.CumSum(clear, np.int64(1)) - clear)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"features": rng.normal(0, 1, (6, 32, 16)), "gaps": rng.uniform(0.01, 4, (6, 32, 1))}

    return net.finish(draw, rgb=net.sum(weights * colour, [1], keep=False))
