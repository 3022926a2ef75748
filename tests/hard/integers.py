"""Integers carried in floats: positions, counts, lengths, indices and choices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .build import HardModel, Net, Tensor, model


def rotate(net: Net, x: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    """The halves of the last axis turned by an angle each (rotary embedding)."""
    left, right = net.slice(x, 0, width // 2), net.slice(x, width // 2, width)
    return x * cos + net.Concat(-right, left, axis=-1) * sin


def count(net: Net, x: Tensor, axis: int) -> Tensor:
    """0, 1, 2, ... along an axis of `x`, in float32, from its shape."""
    length = net.Squeeze(net.Slice(net.Shape(x), [axis], [axis + 1]), [0])
    return net.cast(net.Range(np.int64(0), length, np.int64(1)), np.float32)


@model("integers")
def rotary_far(net: Net) -> HardModel:
    """Rotary attention at positions up to 8,000: angles are position times frequency."""
    x, positions = net.input("x", 16, 64), net.input("positions", 16, dtype=np.int64)
    angles = net.unsqueeze(net.cast(positions, np.float32), 2) * 10000.0 ** (-np.arange(16) / 16)
    angles = net.unsqueeze(net.Concat(angles, angles, axis=-1), 1)
    cos, sin = net.Cos(angles), net.Sin(angles)
    h = x + net.attention(x, 64, 2, turn=lambda t: rotate(net, t, cos, sin, 32))

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        start = rng.integers(2000, 7984, (3, 1))
        return {"x": rng.normal(0, 2, (3, 16, 64)), "positions": start + np.arange(16)}

    return net.finish(draw, y=net.mlp(h, 64, 64, 32))


@model("integers")
def sinusoid_of_range(net: Net) -> HardModel:
    """A sinusoidal table for 3,000 positions made of Shape, Range, Cast, Mul, Sin and Cos."""
    x = net.input("x", 3000, 16)
    angles = net.unsqueeze(count(net, x, 1), 1) * 10000.0 ** (-np.arange(16) / 16)
    h = net.linear(x, 16, 32) + net.Concat(net.Sin(angles), net.Cos(angles), axis=-1)
    h = net.Relu(net.linear(h, 32, 64))
    return net.finish(
        lambda rng: {"x": rng.normal(0, 1, (2, 3000, 16))}, y=net.slice(net.linear(h, 64, 16), 2936, 3000, 1)
    )


@model("integers")
def frames_of_samples(net: Net) -> HardModel:
    """Frame counts floor((samples - 400) / 320) + 1 of audio up to 480,000 samples, and the mask they make."""
    x, lengths = net.input("x", 1500, 16), net.input("lengths", dtype=np.int64)
    frames = net.Floor((net.cast(lengths, np.float32) - 400.0) / 320.0) + 1.0
    mask = net.cast(net.Less(count(net, x, 1), net.unsqueeze(frames, 1)), np.float32)
    h = net.Relu(net.linear(net.Relu(net.linear(x, 16, 32)), 32, 64)) * net.unsqueeze(mask, 2)
    pooled = net.sum(h, [1], keep=False) / net.unsqueeze(frames, 1)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, (4, 1500, 16)), "lengths": rng.integers(200_000, 480_000, 4)}

    return net.finish(draw, y=net.mlp(pooled, 64, 64, 16), frames=net.cast(frames, np.int64))


@model("integers")
def elapsed_minutes(net: Net) -> HardModel:
    """Times of events in minutes up to 50,000, as floats: decay by the difference to the event before (GRU-D)."""
    x, times = net.input("x", 16, 32), net.input("times", 16)
    elapsed = net.slice(times, 1, 16) - net.slice(times, 0, 15)
    decay = net.Exp(elapsed / -8.0)
    h = net.slice(net.mlp(x, 32, 64, 64), 1, 16, 1) * net.unsqueeze(decay, 2)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        times = rng.uniform(20_000, 50_000, (3, 1)) + np.cumsum(rng.integers(1, 20, (3, 16)), axis=1)
        return {"x": rng.normal(0, 1, (3, 16, 32)), "times": times}

    return net.finish(draw, y=net.mlp(h, 64, 64, 16))


@model("integers")
def grid_sampling(net: Net) -> HardModel:
    """Linear sampling of a row of 4,096 pixels at normalized coordinates: floor, fraction, and two lookups."""
    x, grid = net.input("x", 4096, 8), net.input("grid", 64)
    pixel = (grid + 1.0) * 2047.5
    low = net.Floor(pixel)
    part = net.unsqueeze(pixel - low, 2)

    def look(index: Tensor) -> Tensor:
        at = net.cast(net.Clip(index, 0.0, 4095.0), np.int64)
        return net.GatherND(x, net.unsqueeze(at, 2), batch_dims=1)

    h = look(low) * (1.0 - part) + look(low + 1.0) * part

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, (2, 4096, 8)), "grid": rng.uniform(-1, 1, (2, 64))}

    return net.finish(draw, y=net.mlp(h, 8, 64, 64, 64, 8))


@model("integers")
def rank_by_counting(net: Net) -> HardModel:
    """Ranks among 5,000 scores by counting: Greater, Cast, ReduceSum; ranks are returned as integers too."""
    scores, queries = net.input("scores", 5000), net.input("queries", 8)
    above = net.Greater(net.unsqueeze(queries, 2), net.unsqueeze(scores, 1))
    rank = net.sum(net.cast(above, np.float32), keep=False)
    y = net.mlp(rank / 2500.0 - 1.0, 8, 64, 64, 64, 8)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"scores": rng.normal(0, 1, (3, 5000)), "queries": rng.normal(0, 1, (3, 8))}

    return net.finish(draw, y=y, rank=net.cast(rank, np.int64))


@model("integers", opset=14)
def positions_by_cumsum(net: Net) -> HardModel:
    """Position ids as a running sum of the attention mask in float, looked up in a table of 3,000."""
    x, mask = net.input("x", 3000, 16), net.input("mask", 3000, dtype=np.int64)
    real = net.cast(mask, np.float32)
    ids = net.cast(net.CumSum(real, np.int64(1)) * real, np.int64)
    h = net.linear(x, 16, 32) + net.Gather(net.weight(3001, 32, scale=1.5), ids)
    h = net.linear(net.Relu(net.linear(h, 32, 64)), 64, 16)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, (2, 3000, 16)), "mask": rng.random((2, 3000)) < 0.95}

    return net.finish(draw, y=net.slice(h, 2936, 3000, 1))


@model("integers", share=0.75)
def nearest_code(net: Net) -> HardModel:
    """Vector quantization: ArgMin of |e|^2 - 2 x e over codes that come in close pairs, then a lookup.

    The product that decides must stay FP32 (1 of 4).
    """
    x = net.input("x", 16, 32)
    codes = np.repeat(net.weight(32, 32), 2, axis=0)
    codes[1::2] += net.weight(32, 32, scale=0.004)
    distance = np.sum(codes**2, axis=1) - 2.0 * net.MatMul(x, codes.T, hard=True)
    ids = net.ArgMin(distance, axis=-1, keepdims=0)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": codes[rng.integers(0, 64, (3, 16))] + rng.normal(0, 1e-3, (3, 16, 32))}

    return net.finish(draw, y=net.mlp(net.Gather(net.weight(64, 32), ids), 32, 64, 64, 16), ids=ids)


@model("integers")
def best_proposals(net: Net) -> HardModel:
    """TopK over 1,000 objectness scores after Sigmoid: many scores share one half number."""
    scores, features = net.input("scores", 1000), net.input("features", 1000, 16)
    _, ids = net.TopK(net.Sigmoid(scores), [32], axis=1, outputs=2)
    h = net.GatherND(features, net.unsqueeze(ids, 2), batch_dims=1)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"scores": rng.normal(1, 1.5, (2, 1000)), "features": rng.normal(0, 1, (2, 1000, 16))}

    return net.finish(draw, y=net.mlp(h, 16, 64, 64, 64, 8), ids=ids)


@model("integers")
def relative_buckets(net: Net) -> HardModel:
    """DeBERTa's relative position buckets: ceil(log(d / 128) / log(511 / 128) * 127) + 128 as an index of biases."""
    x = net.input("x", 300, 32)
    place = net.cast(count(net, x, 1), np.int64)
    distance = net.Abs(net.unsqueeze(place, 0) - net.unsqueeze(place, 1))
    far = net.Log(net.cast(net.Max(distance, np.int64(128)), np.float32) / 128.0) / math.log(511 / 128) * 127.0
    far = net.cast(net.Ceil(far) + 128.0, np.int64)
    bucket = net.Where(net.Less(distance, np.int64(128)), distance, far)
    bias = net.Transpose(net.Gather(net.weight(256, 2, scale=4), bucket), perm=[2, 0, 1])
    h = net.attention(x, 32, 2, weigh=lambda scores: net.Softmax(scores + bias, axis=-1))
    return net.finish(lambda rng: {"x": rng.normal(0, 1, (2, 300, 32))}, y=net.mlp(h, 32, 64, 16), bucket=bucket)


@model("integers")
def diffusion_timestep(net: Net) -> HardModel:
    """Sinusoidal embedding of time steps 0 to 1,000, then layers that shift a feature map."""
    x, step = net.input("x", 4, 16, 16), net.input("step", dtype=np.int64)
    angles = net.unsqueeze(net.cast(step, np.float32), 1) * 10000.0 ** (-np.arange(32) / 32)
    embedding = net.mlp(net.Concat(net.Cos(angles), net.Sin(angles), axis=-1), 64, 64, 32)
    h = net.conv(x, 4, 32) + net.Reshape(embedding, [0, 32, 1, 1])

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 0.3, (4, 4, 16, 16)), "step": rng.integers(0, 1000, 4)}

    return net.finish(draw, noise=net.conv(net.Relu(net.conv(net.Relu(h), 32, 32)), 32, 4))


@model("integers")
def segment_stride(net: Net) -> HardModel:
    """Index arithmetic in float, segment * 512 + offset, cast for a lookup in a flat table of 8,192 rows."""
    segment, offset = net.input("segment", 24, dtype=np.int64), net.input("offset", 24, dtype=np.int64)
    flat = net.cast(segment, np.float32) * 512.0 + net.cast(offset, np.float32)
    h = net.Gather(net.weight(8192, 16), net.cast(flat, np.int64))

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"segment": rng.integers(0, 16, (3, 24)), "offset": rng.integers(0, 512, (3, 24))}

    return net.finish(draw, y=net.mlp(h, 16, 64, 64, 64, 8))


@model("integers")
def boxes_offset_by_class(net: Net) -> HardModel:
    """Batched suppression: boxes moved by class * 4,096 so that classes never overlap, then widths, overlaps, keep."""
    boxes, classes = net.input("boxes", 12, 2), net.input("classes", 12, dtype=np.int64)
    features = net.input("features", 12, 32)
    moved = boxes + net.unsqueeze(net.cast(classes, np.float32) * 4096.0, 2)
    low, high = net.slice(moved, 0, 1), net.slice(moved, 1, 2)
    turn = {"perm": [0, 2, 1]}
    inter = net.Min(high, net.Transpose(high, **turn)) - net.Max(low, net.Transpose(low, **turn))
    size = high - low
    inter = net.Max(inter, 0.0)
    iou = inter / (size + net.Transpose(size, **turn) - inter)
    keep = net.cast(net.Greater(iou, 0.5), np.int64)
    h = net.MatMul(iou, net.linear(features, 32, 64))

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        low = rng.uniform(0, 300, (3, 12, 1))
        return {
            "boxes": np.concatenate([low, low + rng.uniform(60, 200, low.shape)], -1),
            "classes": rng.integers(0, 4, (3, 12)),
            "features": rng.normal(0, 1, (3, 12, 32)),
        }

    return net.finish(draw, y=net.mlp(h, 64, 64, 16), same=keep)


@model("integers")
def hashed_bigrams(net: Net) -> HardModel:
    """Hash embeddings: Mod(31 * id + previous id, 1021) in float, exact in FP32, as a table index."""
    ids = net.input("ids", 17, dtype=np.int64)
    number = net.cast(ids, np.float32)
    mixed = net.slice(number, 1, 17) * 31.0 + net.slice(number, 0, 16)
    bucket = net.cast(net.Mod(mixed, 1021.0, fmod=1), np.int64)
    h = net.Gather(net.weight(1021, 32), bucket)
    return net.finish(lambda rng: {"ids": rng.integers(0, 50_000, (3, 17))}, y=net.mlp(h, 32, 64, 64, 64, 8))


@model("integers", opset=11)
def ids_in_float(net: Net) -> HardModel:
    """A tabular export that feeds category ids to 12,000 as floats, cast inside the model for the lookup."""
    x = net.input("x", 8)
    ids = net.cast(net.slice(x, 0, 2), np.int64)
    looked = net.Reshape(net.Gather(net.weight(12_000, 8), ids), [0, 16])
    h = net.Concat(looked, net.slice(x, 2, 8), axis=-1)
    for wide, out in ((22, 64), (64, 64), (64, 64)):
        h = net.Relu(net.Gemm(h, net.weight(wide, out, scale=wide**-0.5), net.weight(out, scale=0.1)))

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": np.concatenate([rng.integers(0, 12_000, (16, 2)), rng.normal(0, 1, (16, 6))], axis=1)}

    return net.finish(draw, y=net.Gemm(h, net.weight(64, 4), net.weight(4)))


@model("integers")
def last_token(net: Net) -> HardModel:
    """Pooling at the last real token: the float sum of the mask, less one, is the index (lengths to 3,000)."""
    x, mask = net.input("x", 3000, 16), net.input("mask", 3000, dtype=np.int64)
    last = net.cast(net.sum(net.cast(mask, np.float32), [1]) - 1.0, np.int64)
    h = net.GatherND(net.Tanh(net.linear(x, 16, 64)), last, batch_dims=1)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        lengths = rng.integers(2100, 3000, (4, 1))
        return {"x": rng.normal(0, 1, (4, 3000, 16)), "mask": np.arange(3000) < lengths}

    return net.finish(draw, y=net.mlp(h, 64, 64, 64, 8))


@model("integers")
def time_of_day(net: Net) -> HardModel:
    """Seconds since the start of the data (to 3,000,000) to hour-of-day angles by Mod 86,400."""
    seconds, x = net.input("seconds", 16, dtype=np.int64), net.input("x", 16, 16)
    turn = net.Mod(net.cast(seconds, np.float32), 86400.0, fmod=1) * (2 * math.pi / 86400)
    clock = net.Concat(net.unsqueeze(net.Sin(turn), 2), net.unsqueeze(net.Cos(turn), 2), axis=-1)
    h = net.Concat(x, clock, axis=-1)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"seconds": rng.integers(0, 3_000_000, (3, 16)), "x": rng.normal(0, 0.3, (3, 16, 16))}

    return net.finish(draw, y=net.mlp(h, 18, 64, 64, 64, 8))


@model("integers")
def pyramid_level(net: Net) -> HardModel:
    """The pyramid level of each box, floor(4 + log2(sqrt(area) / 224)), chooses its features (Mask R-CNN)."""
    size, features = net.input("size", 24, 2), net.input("features", 24, 4, 16)
    area = net.slice(size, 0, 1) * net.slice(size, 1, 2)
    level = net.Floor(net.Log(net.Sqrt(area) / 224.0 + 1e-8) / math.log(2) + 4.0)
    index = net.cast(net.Clip(level, 2.0, 5.0) - 2.0, np.int64)
    h = net.GatherND(features, index, batch_dims=2)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"size": rng.uniform(40, 900, (3, 24, 2)), "features": rng.normal(0, 1, (3, 24, 4, 16))}

    return net.finish(draw, y=net.mlp(h, 16, 64, 64, 64, 8), level=index)
