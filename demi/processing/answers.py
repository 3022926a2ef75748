"""A model's outputs to answers, in NumPy: pooling, scores, labels, and the labels of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from demi.errors import InferenceError
from demi.processing.description import (
    AnswerKind,
    ClassAnswer,
    EmbeddingAnswer,
    Function,
    Pooling,
    ScoreAnswer,
    TokenAnswer,
)
from demi.processing.prepared import Token
from demi.tensors import Array, DType, Feeds, TensorSpec

EMBEDDING, SCORES, LABEL, SCORE, ENTITIES = "embedding", "scores", "label", "score", "entities"


def answer_specs(answer: AnswerKind, output: TensorSpec) -> tuple[TensorSpec, ...]:
    """Return the answers of a model with this output: their names, dtypes and shapes."""
    batch = output.shape[0]
    match answer:
        case EmbeddingAnswer():
            return (TensorSpec(EMBEDDING, DType.FP32, (batch, output.shape[-1])),)
        case ClassAnswer():
            return (
                TensorSpec(LABEL, DType.BYTES, (batch,)),
                TensorSpec(SCORES, DType.FP32, (batch, len(answer.labels))),
            )
        case ScoreAnswer():
            return (TensorSpec(SCORE, DType.FP32, (batch,)),)
        case TokenAnswer():
            return (TensorSpec(ENTITIES, DType.BYTES, (batch,)),)


def make_answers(answer: AnswerKind, values: Array, mask: Array | None, tokens: Sequence[Sequence[Token]]) -> Feeds:
    """Return the answers to one run by name: `values` is the model's output, `mask` 1 for tokens and 0 for padding.

    `tokens` are those of each row, which a TokenAnswer needs.
    """
    values = np.asarray(values, np.float32)
    match answer:
        case EmbeddingAnswer():
            vectors = pool(values, mask, answer.pooling) if answer.pooling else values
            return {EMBEDDING: unit_length(vectors) if answer.normalize else vectors}
        case ClassAnswer():
            scores = apply(answer.function, values)
            return {LABEL: _labels(answer.labels, scores), SCORES: scores}
        case ScoreAnswer():
            return {SCORE: apply(answer.function, values.reshape(len(values), -1)[:, -1])}
        case TokenAnswer():
            return {ENTITIES: _entities(answer, values, tokens)}


def pool(values: Array, mask: Array | None, pooling: Pooling) -> Array:
    """Return one vector a row from float32[rows, tokens, size] and its mask [rows, tokens], as sentence-transformers does."""
    seen = np.ones(values.shape[:2], np.float32) if mask is None else mask.astype(np.float32)
    match pooling:
        case "mean":
            total = np.einsum("rts,rt->rs", values, seen)
            return np.asarray(total / np.maximum(seen.sum(1, keepdims=True), 1e-9), np.float32)
        case "max":
            return np.asarray(np.where(seen[:, :, None] > 0, values, -np.inf).max(1), np.float32)
        case "cls":
            place = np.argmax(seen > 0, axis=1)
        case "last":
            place = values.shape[1] - 1 - np.argmax(seen[:, ::-1] > 0, axis=1)
    return np.asarray(values[np.arange(len(values)), place], np.float32)


def unit_length(vectors: Array) -> Array:
    """Return vectors scaled to length 1; one of zeros stays as it is."""
    lengths = np.sqrt(np.einsum("rs,rs->r", vectors, vectors))
    return np.asarray(vectors / np.maximum(lengths, 1e-12)[:, None], np.float32)


def apply(function: Function, logits: Array) -> Array:
    """Return the scores of logits: softmax over the last axis, sigmoid, or the logits."""
    if function == "none":
        return logits
    with np.errstate(over="ignore"):
        if function == "sigmoid":
            return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), np.float32)


def _labels(labels: Sequence[str], scores: Array) -> Array:
    if scores.shape[-1] != len(labels):
        raise InferenceError(f"the model scores {scores.shape[-1]} classes, but {len(labels)} have names")
    found = np.empty(len(scores), np.object_)
    found[:] = [labels[index] for index in scores.argmax(-1)]
    return found


def _entities(answer: TokenAnswer, values: Array, tokens: Sequence[Sequence[Token]]) -> Array:
    """Return a JSON list for each row, with the fields of transformers' pipeline without aggregation."""
    found = np.empty(len(values), np.object_)
    for row, (logits, known) in enumerate(zip(values, tokens, strict=True)):
        if len(known) > len(logits) or logits.shape[-1] != len(answer.labels):
            raise InferenceError(
                f"the model answers {logits.shape}, not {len(known)} tokens of {len(answer.labels)} classes"
            )
        scores = apply("softmax", logits[: len(known)])
        entities = [
            {
                "entity": answer.labels[best],
                "score": float(scores[index, best]),
                "index": index,
                "word": token.text,
                "start": token.start,
                "end": token.end,
            }
            for index, (token, best) in enumerate(zip(known, scores.argmax(-1), strict=True))
            if not token.special and answer.labels[best] not in answer.ignored
        ]
        found[row] = msgspec.json.encode(entities).decode()
    return found
