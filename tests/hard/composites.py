"""Whole small networks, with several hard spots among ordinary layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from .build import FLOAT_MIN, HardModel, Net, Tensor, model
from .integers import count, rotate


def group_norm(net: Net, x: Tensor, channels: int, groups: int, eps: float = 1e-5) -> Tensor:
    """GroupNorm in primitives, statistics over each group's channels and pixels."""
    flat = net.Reshape(x, [0, groups, -1])
    d = flat - net.mean(flat)
    flat = d / net.Sqrt(net.mean(d * d) + eps)
    scale, shift = net.weight(channels, 1, 1, scale=0.1, offset=1), net.weight(channels, 1, 1, scale=0.1)
    return net.Reshape(flat, net.Shape(x)) * scale + shift


@model("composites", opset=13)
def bert_like(net: Net) -> HardModel:
    """Two post-norm encoder layers: ids, positions by CumSum, LayerNorm in primitives (1e-12), finfo.min mask, pooler."""
    ids, mask = net.input("ids", 24, dtype=np.int64), net.input("mask", 24, dtype=np.int64)
    place = net.CumSum(mask, np.int64(1)) * mask
    h = net.Gather(net.weight(500, 64), ids) + net.Gather(net.weight(25, 64, scale=0.5), place)
    h = net.layernorm(h, 64, eps=1e-12)
    bias = (1.0 - net.cast(net.unsqueeze(mask, 1, 2), np.float32)) * FLOAT_MIN
    for _ in range(2):
        attended = net.attention(h, 64, 4, lambda scores: net.Softmax(scores + bias, axis=-1))
        h = net.layernorm(h + attended, 64, eps=1e-12)
        inner = net.linear(h, 64, 128)
        inner = inner * (net.Erf(inner / math.sqrt(2)) + 1.0) * 0.5
        h = net.layernorm(h + net.linear(inner, 128, 64), 64, eps=1e-12)
    first = net.Squeeze(net.slice(h, 0, 1, 1), [1])

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"ids": rng.integers(0, 500, (4, 24)), "mask": np.arange(24) < rng.integers(4, 25, (4, 1))}

    return net.finish(draw, logits=net.linear(net.Tanh(net.linear(first, 64, 64)), 64, 8), hidden=h)


@model("composites")
def llama_like(net: Net) -> HardModel:
    """Two decoder layers at positions to 8,000: RMSNorm, rotary, causal finfo.min mask, massive activations of 2,000."""
    ids, positions = net.input("ids", 16, dtype=np.int64), net.input("positions", 16, dtype=np.int64)
    angles = net.unsqueeze(net.cast(positions, np.float32), 2) * 10000.0 ** (-np.arange(8) / 8)
    angles = net.unsqueeze(net.Concat(angles, angles, axis=-1), 1)
    cos, sin = net.Cos(angles), net.Sin(angles)
    causal = np.triu(np.full((16, 16), FLOAT_MIN, np.float32), 1)
    table = net.weight(500, 64)
    table[:, [7, 30]] += [2000, -1500]
    h = net.Gather(table, ids)
    for _ in range(2):
        normed = net.rmsnorm(h, 64) * 8.0
        h = h + net.attention(
            normed,
            64,
            4,
            lambda scores: net.Softmax(scores + causal, axis=-1),
            lambda t: rotate(net, t, cos, sin, 16),
        )
        normed = net.rmsnorm(h, 64)
        gate = net.linear(normed, 64, 128)
        h = h + net.linear(gate * net.Sigmoid(gate) * net.linear(normed, 64, 128), 128, 64)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        start = rng.integers(1000, 7984, (3, 1))
        return {"ids": rng.integers(0, 500, (3, 16)), "positions": start + np.arange(16)}

    return net.finish(draw, logits=net.linear(net.rmsnorm(h, 64) * 8.0, 64, 100))


@model("composites")
def style_transfer(net: Net) -> HardModel:
    """A ConvNet on raw pixels with InstanceNorm in primitives: variances of 1e5 in front, residual blocks behind."""
    h = net.conv(net.input("x", 3, 24, 24), 3, 16, gain=3.0)
    for wide, out in ((16, 32), (32, 32), (32, 32)):
        d = h - net.mean(h, [2, 3])
        h = d / net.Sqrt(net.mean(d**2.0, [2, 3]) + 1e-9)
        h = net.conv(net.Relu(h), wide, out)
    y = (net.Tanh(net.conv(h, 32, 3)) + 1.0) * 127.5
    return net.finish(lambda rng: {"x": rng.integers(0, 256, (2, 3, 24, 24))}, y=y)


@model("composites")
def loop_accumulator(net: Net) -> HardModel:
    """A Loop over 12 steps: a recurrent state by Tanh of two MatMuls, and a running energy that passes 65,504."""
    x = net.input("x", 32)
    w, u = net.const(net.weight(32, 32, scale=0.2)), net.const(net.weight(32, 32, scale=0.2))
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"], name="/again"),
            helper.make_node("MatMul", ["state", w.name], ["recurrent"], name="/body/MatMul_state"),
            helper.make_node("MatMul", [x.name, u.name], ["driven"], name="/body/MatMul_input"),
            helper.make_node("Add", ["recurrent", "driven"], ["before"], name="/body/Add"),
            helper.make_node("Tanh", ["before"], ["next_state"], name="/body/Tanh"),
            helper.make_node("Mul", ["before", "before"], ["square"], name="/body/Mul"),
            helper.make_node("Mul", ["square", net.const(5e3).name], ["power"], name="/body/Mul_scale"),
            helper.make_node("Add", ["energy", "power"], ["next_energy"], name="/body/Add_energy"),
        ],
        "step",
        [
            value("step", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, ["batch", 32]),
            value("energy", TensorProto.FLOAT, ["batch", 32]),
        ],
        [
            value("again", TensorProto.BOOL, []),
            value("next_state", TensorProto.FLOAT, ["batch", 32]),
            value("next_energy", TensorProto.FLOAT, ["batch", 32]),
        ],
    )
    state, energy = net.Loop(np.int64(12), np.array(True), x * 0.0, x * 0.0, outputs=2, body=body)
    h = net.Reshape(net.Concat(state, net.Log(energy + 1.0) * 0.1, axis=-1), [-1, 64])
    return net.finish(lambda rng: {"x": rng.normal(0, 1.5, (8, 32))}, y=net.mlp(h, 64, 64, 64, 8))


@model("composites")
def lstm_on_timestamps(net: Net) -> HardModel:
    """An LSTM over readings in a tiny unit with minutes since the start (to 90,000) as a feature, last state pooled."""
    x, minutes = net.input("x", 16, 8), net.input("minutes", 16)
    angle = net.unsqueeze(minutes, 2) * (2 * math.pi / np.array([60.0, 1440.0, 10080.0]))
    step = net.Concat(x * 1e9, net.Sin(angle), net.Cos(angle), axis=-1)
    step = net.Relu(net.linear(net.mlp(step, 14, 64, 32), 32, 32))
    w, r = net.weight(1, 4 * 32, 32, scale=0.18), net.weight(1, 4 * 32, 32, scale=0.18)
    _, last, _ = net.LSTM(
        net.Transpose(step, perm=[1, 0, 2]), w, r, net.weight(1, 8 * 32, scale=0.1), hidden_size=32, outputs=3
    )
    h = net.Squeeze(last, [0])

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        start = rng.integers(10_000, 90_000, (4, 1))
        return {"x": rng.normal(0, 1e-9, (4, 16, 8)), "minutes": start + np.cumsum(rng.integers(1, 9, (4, 16)), 1)}

    return net.finish(draw, y=net.mlp(h, 32, 64, 8))


@model("composites")
def denoiser(net: Net) -> HardModel:
    """A small diffusion network: time steps to 1,000, GroupNorm in primitives on activations of 500, skip connections."""
    x, step = net.input("x", 4, 16, 16), net.input("step", dtype=np.int64)
    angles = net.unsqueeze(net.cast(step, np.float32), 1) * 10000.0 ** (-np.arange(16) / 16)
    time = net.mlp(net.Concat(net.Cos(angles), net.Sin(angles), axis=-1), 32, 64, 32)
    h = net.conv(x, 4, 32, gain=500.0)
    for _ in range(2):
        branch = group_norm(net, h, 32, 4)
        branch = net.conv(branch * net.Sigmoid(branch), 32, 32) + net.Reshape(time, [0, 32, 1, 1])
        branch = group_norm(net, branch, 32, 4)
        h = h + net.conv(branch * net.Sigmoid(branch), 32, 32, gain=300.0)
    h = group_norm(net, h, 32, 4)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, (3, 4, 16, 16)), "step": rng.integers(0, 1000, 3)}

    return net.finish(draw, noise=net.conv(h * net.Sigmoid(h), 32, 4))


@model("composites", opset=17)
def speech_recognizer(net: Net) -> HardModel:
    """Log energies that pass 65,504, lengths in float, sinusoids by Range, a -1e9 mask, masked mean, log-probabilities."""
    x, lengths = net.input("x", 3000, 8), net.input("lengths", dtype=np.int64)
    energy = net.Relu(net.linear(x, 8, 32)) ** 2.0
    h = (net.Log(energy + 1.0) - 8.0) / 4.0
    h = net.Transpose(h, perm=[0, 2, 1])
    h = net.Conv(h, net.weight(32, 32, 9, scale=0.06), strides=[25], pads=[4, 4])
    h = net.Transpose(net.Relu(h), perm=[0, 2, 1])
    frames = net.unsqueeze(net.Floor((net.cast(lengths, np.float32) - 1.0) / 25.0) + 1.0, 1)
    keep = net.cast(net.Less(count(net, h, 1), frames), np.float32)
    angles = net.unsqueeze(count(net, x, 1), 1) * 10000.0 ** (-np.arange(16) / 16)
    table = net.Concat(net.Sin(angles), net.Cos(angles), axis=-1)
    h = h + net.Slice(table, [0], [3000], [0], [25])
    bias = (1.0 - net.unsqueeze(keep, 1, 2)) * -1e9
    h = net.layernorm_op(h + net.attention(h, 32, 2, lambda s: net.Softmax(s + bias, axis=-1)), 32)
    pooled = net.sum(h * net.unsqueeze(keep, 2), [1], keep=False) / net.Clip(net.sum(keep), 1e-9)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 300, (3, 3000, 8)), "lengths": rng.integers(2100, 3000, 3)}

    logp = net.LogSoftmax(net.mlp(pooled, 32, 64, 20), axis=-1)
    return net.finish(draw, logp=logp, frames=net.cast(frames, np.int64))


@model("composites", share=0.85)
def recommender(net: Net) -> HardModel:
    """Float ids, unscaled dollar features, a pairwise square of sums, log counts, and softmax at a low temperature.

    The product with the stored profiles passes 65,504 and must stay FP32 (1 of 7).
    """
    ids, dollars, counts = net.input("ids", 4), net.input("dollars", 16), net.input("counts", 8, dtype=np.int64)
    fields = net.Gather(net.weight(20_000, 32), net.cast(ids, np.int64))
    total = net.sum(fields, [1], keep=False)
    pairs = (total**2.0 - net.sum(fields**2.0, [1], keep=False)) * 0.5
    money = net.Log(net.Max(dollars, 0.0) + 1.0) * 0.1
    seen = net.Log(net.cast(counts, np.float32) + 1.0) * 0.1
    profile = net.MatMul(dollars, net.weight(16, 32, scale=3), hard=True) / 100_000.0
    h = net.Concat(net.mlp(pairs, 32, 64, 32), money, seen, profile, axis=-1)
    y = net.mlp(h, 88, 128, 64, 64, 4)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {
            "ids": rng.integers(0, 20_000, (16, 4)),
            "dollars": rng.lognormal(9, 1.5, (16, 16)),
            "counts": rng.integers(0, 300_000, (16, 8)),
        }

    return net.finish(draw, y=y)
