"""Masks: intended infinities, and the NaN that results from 0 times infinity or from fully masked rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .build import FLOAT_MIN, Draw, HardModel, Net, Tensor, model


def tokens(time: int, width: int, shortest: int = 1, left: bool = False) -> Draw:
    """`x` and an int64 `mask` with padding on the right (or left); a length may be as short as `shortest`."""

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        lengths = np.append(rng.integers(max(shortest, 2), time, 3), shortest)[:, None]
        place = np.arange(time)[::-1] if left else np.arange(time)
        return {"x": rng.normal(0, 1, (4, time, width)), "mask": place < lengths}

    return draw


def masked_input(net: Net, time: int, width: int) -> tuple[Tensor, Tensor]:
    """The inputs that `tokens` feeds."""
    return net.input("x", time, width), net.input("mask", time, dtype=np.int64)


def encoder(net: Net, weigh: Any, draw: Draw, x: Tensor) -> HardModel:
    """An attention layer whose scores `weigh` masks, and a feed-forward, both with LayerNormalization."""
    h = net.layernorm_op(x + net.attention(x, 64, 4, weigh), 64)
    return net.finish(draw, y=net.mlp(h, 64, 128, 32))


@model("masks")
def additive_1e9(net: Net) -> HardModel:
    """(1 - mask) * -1e9 added to the scores: half makes -1e9 infinite, and 0 times infinity is NaN."""
    x, mask = masked_input(net, 16, 64)
    bias = (1.0 - net.unsqueeze(net.cast(mask, np.float32), 1, 2)) * -1e9
    return encoder(net, lambda scores: net.Softmax(scores + bias, axis=-1), tokens(16, 64), x)


@model("masks", opset=13)
def additive_float_min(net: Net) -> HardModel:
    """The extended mask of Hugging Face models, (1 - mask) * finfo.min, with a learned position bias added before."""
    x, mask = masked_input(net, 16, 64)
    extended = net.cast(net.unsqueeze(net.unsqueeze(mask, 1), 2), np.float32)
    bias = (1.0 - extended) * FLOAT_MIN + net.weight(1, 4, 16, 16)
    h = x + net.attention(x, 64, 4, lambda scores: net.Softmax(scores + bias, axis=-1))
    return net.finish(tokens(16, 64), y=net.mlp(h, 64, 128, 32))


@model("masks")
def causal_and_left_padding(net: Net) -> HardModel:
    """A causal and a padding mask of finfo.min, added: early queries of left-padded rows see nothing but masks.

    FP32 gives such rows the least masked keys, by luck and finitely; all of them infinite would give NaN.
    """
    x, mask = masked_input(net, 16, 64)
    causal = np.triu(np.full((16, 16), FLOAT_MIN, np.float32), 1)
    padding = net.Where(net.Equal(net.unsqueeze(mask, 1, 2), np.int64(0)), FLOAT_MIN, 0.0)
    return encoder(net, lambda s: net.Softmax(s + (padding + causal), axis=-1), tokens(16, 64, left=True), x)


@model("masks")
def where_and_of_masks(net: Net) -> HardModel:
    """Where(causal And padding, scores, -1e9) with left padding: rows that are all -1e9 spread evenly in FP32."""
    x, mask = masked_input(net, 16, 64)
    seen = net.And(net.unsqueeze(net.cast(mask, bool), 1, 2), np.tril(np.ones((16, 16), bool)))
    return encoder(net, lambda s: net.Softmax(net.Where(seen, s, -1e9), axis=-1), tokens(16, 64, left=True), x)


@model("masks")
def renormalized_softmax(net: Net) -> HardModel:
    """AllenNLP's masked softmax, softmax(x m) m / (sum + 1e-13), with a row that has nothing left."""
    x, mask = masked_input(net, 16, 64)
    keep = net.unsqueeze(net.cast(mask, np.float32), 1, 2)

    def weigh(scores: Tensor) -> Tensor:
        weights = net.Softmax(scores * keep, axis=-1) * keep
        return weights / (net.sum(weights) + 1e-13)

    return encoder(net, weigh, tokens(16, 64, shortest=0), x)


@model("masks")
def log_softmax_of_log_mask(net: Net) -> HardModel:
    """Masked log-softmax by adding log(mask + 1e-45): finite everywhere in FP32, and read by a loss."""
    x, mask = masked_input(net, 32, 32)
    scores = net.Squeeze(net.mlp(x, 32, 64, 64, 1), [2])
    logp = net.LogSoftmax(scores + net.Log(net.cast(mask, np.float32) + 1e-45), axis=-1)
    return net.finish(tokens(32, 32), logp=logp)


@model("masks")
def loss_after_log_softmax(net: Net) -> HardModel:
    """Actions masked by -1e9 before LogSoftmax, the log-probabilities multiplied by the mask and averaged."""
    x, mask = masked_input(net, 16, 32)
    keep = net.cast(mask, np.float32)
    logits = net.Squeeze(net.mlp(x, 32, 64, 64, 1), [2])
    logp = net.LogSoftmax(net.Where(net.cast(mask, bool), logits, -1e9), axis=-1) * keep
    mean = net.sum(logp, keep=False) / net.sum(keep, keep=False)
    return net.finish(tokens(16, 32), mean=mean, logp=logp)


@model("masks")
def masked_mean(net: Net) -> HardModel:
    """Mean pooling of sentence embeddings, sum(h m) / max(sum(m), 1e-9), with an empty sentence in the batch."""
    x, mask = masked_input(net, 16, 64)
    keep = net.Expand(net.unsqueeze(net.cast(mask, np.float32), 2), net.Shape(x))
    h = net.layernorm_op(x + net.attention(x, 64, 4), 64)
    pooled = net.sum(h * keep, [1], keep=False) / net.Clip(net.sum(keep, [1], keep=False), 1e-9)
    return net.finish(tokens(16, 64, shortest=0), y=net.mlp(pooled, 64, 64, 32))


@model("masks")
def score_minus_1e30(net: Net) -> HardModel:
    """XLNet's attention: the score less 1e30 times a mask of zeros and ones."""
    x, mask = masked_input(net, 16, 64)
    hidden = net.unsqueeze(net.cast(np.int64(1) - mask, np.float32), 1, 2)
    return encoder(net, lambda scores: net.Softmax(scores - 1e30 * hidden, axis=-1), tokens(16, 64), x)


@model("masks")
def multiplied_causal(net: Net) -> HardModel:
    """GPT-2's first form, scores * b - 1e10 * (1 - b), with b a causal table of floats."""
    x = net.input("x", 16, 64)
    b = np.tril(np.ones((16, 16), np.float32))
    seen = net.Slice(b, [0], net.Slice(net.Shape(x), [1], [2]), [0])
    bias = (1.0 - seen) * 1e10

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, (3, 16, 64))}

    return encoder(net, lambda scores: net.Softmax(scores * seen - bias, axis=-1), draw, x)


@model("masks")
def pointer_span(net: Net) -> HardModel:
    """Start and end of an answer as BiDAF masks them: logits * m + (1 - m) * -1e30 before each softmax."""
    x, mask = masked_input(net, 32, 32)
    keep = net.cast(mask, np.float32)
    h = net.Relu(net.mlp(x, 32, 64, 64))
    spans = []
    for _ in range(2):
        logits = net.Squeeze(net.linear(h, 64, 1, gain=2), [2])
        spans.append(net.Softmax(logits * keep + (1.0 - keep) * -1e30, axis=-1))
    return net.finish(tokens(32, 32), start=spans[0], end=spans[1])


@model("masks")
def graph_attention(net: Net) -> HardModel:
    """Graph attention with -9e15 where there is no edge, as a sum of masked parts; some nodes have no neighbour."""
    x, edges = net.input("x", 16, 32), net.input("edges", 16, 16, dtype=np.int64)
    h = net.linear(x, 32, 64)
    source, target = net.linear(h, 64, 1), net.linear(h, 64, 1)
    scores = net.LeakyRelu(source + net.Transpose(target, perm=[0, 2, 1]), alpha=0.2)
    weights = net.Softmax(net.Where(net.Greater(edges, np.int64(0)), scores, -9e15), axis=-1)
    h = net.Elu(net.MatMul(weights, h))

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        edges = rng.random((3, 16, 16)) < 0.2
        edges[:, rng.integers(0, 16, 2)] = False
        return {"x": rng.normal(0, 1, (3, 16, 32)), "edges": edges}

    return net.finish(draw, y=net.mlp(h, 64, 64, 16))


@model("masks")
def attention_entropy(net: Net) -> HardModel:
    """Attention masked with -inf, its entropy -sum(w log(w + 1e-9)) beside the output: 0 times log 0 without the 1e-9."""
    x, mask = masked_input(net, 16, 64)
    kept: list[Tensor] = []

    def weigh(scores: Tensor) -> Tensor:
        masked = net.Where(net.unsqueeze(net.cast(mask, bool), 1, 2), scores, -np.inf)
        kept.append(net.Softmax(masked, axis=-1))
        return kept[0]

    h = net.layernorm_op(x + net.attention(x, 64, 4, weigh), 64)
    entropy = -net.sum(kept[0] * net.Log(kept[0] + 1e-9), keep=False)
    return net.finish(tokens(16, 64), y=net.mlp(h, 64, 128, 32), entropy=entropy)


@model("masks")
def guarded_empty_rows(net: Net) -> HardModel:
    """Additive -inf for padding and a guard that zeroes rows without any key; the guard counts with 1e-10 against 0 / 0."""
    x, mask = masked_input(net, 16, 64)
    keep = net.unsqueeze(net.cast(mask, np.float32), 1, 2)

    def weigh(scores: Tensor) -> Tensor:
        top = net.reduce("ReduceMax", net.Where(net.Greater(keep, 0.0), scores, -1e5))
        e = net.Exp(net.Min(scores - top, 0.0)) * keep
        return e / (net.sum(e) + 1e-10)

    return encoder(net, weigh, tokens(16, 64, shortest=0), x)


@model("masks")
def crf_forward(net: Net) -> HardModel:
    """The forward pass of a CRF over 6 steps: -1e5 forbids tags, and log-sum-exp subtracts the largest."""
    x = net.input("x", 6, 32)
    emissions = net.mlp(x, 32, 64, 64, 64, 5)
    moves = net.weight(5, 5)
    moves[:, 0] = -1e5
    start = np.array([0, -1e5, -1e5, -1e5, -1e5], np.float32)
    alpha = start + net.slice(emissions, 0, 1, 1) * 0.1
    for step in range(1, 6):
        scores = net.Transpose(alpha, perm=[0, 2, 1]) + moves + net.slice(emissions, step, step + 1, 1)
        top = net.reduce("ReduceMax", scores, [1])
        alpha = top + net.Log(net.sum(net.Exp(scores - top), [1]))

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.normal(0, 1, (6, 6, 32))}

    return net.finish(draw, alpha=net.slice(net.Squeeze(alpha, [1]), 1, 5))
