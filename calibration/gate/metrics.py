"""Task metrics: scores from a model's outputs and labels.

A built-in metric reads one output. A user's own, `module:function`, gets all outputs and the labels. It returns one
number per sample, whose mean is the score and which allow a paired bootstrap, or one number for all samples.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from demi.errors import InputError, SampleError
from demi.tensors import Array, Feeds, TensorSpec
from demi.user_code import current_folder_importable

IGNORED = 255
"""The label of pixels without a class in segmentation data sets. Negative labels are ignored by every metric."""
OF_PIXELS = ("miou", "dice")
"""Metrics that also ignore pixels with the label 255."""
MAP_CLASSES = 256
"""Number of classes of an output that holds class numbers instead of scores."""

Rows = Callable[[Array, Array], Array]
"""Function from one output and the labels, first axis samples, to rows `[samples, numbers]`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A score computed from outputs and labels."""

    name: str
    formula: str
    """Key in `demi.calibration.gate.measure.FORMULAS`."""
    rows: Callable[[Feeds, Array | None], Array]
    """Function from outputs and labels to `[samples, numbers]`, or to one number that is the score."""
    output: str | None = None
    whole: bool = False
    """True if it needs all samples at once; others are fed batch by batch."""
    higher_is_better: bool = True


def find_metric(text: str, outputs: Sequence[TensorSpec]) -> Metric:
    """Return the metric called `top1`, `OUTPUT:top1` or `module:function`. Raises InputError, listing those there are."""
    before, colon, name = text.rpartition(":")
    names = [spec.name for spec in outputs]
    if name in BUILT_IN and (not colon or before in names):
        return _built_in(name, before if colon else _only(names, text))
    if not colon or before in names:
        raise InputError(
            f"unknown metric `{text}`",
            where="--metric",
            hint=f"use one of {', '.join(BUILT_IN)}, with OUTPUT: before it, or module:function for your own",
        )
    return _users_own(before, name)


def _only(names: Sequence[str], text: str) -> str:
    if len(names) != 1:
        raise InputError(
            f"`{text}` does not say which output it is for: the model has {', '.join(names)}",
            where="--metric",
            hint=f"write it as {names[0]}:{text}",
        )
    return names[0]


def _built_in(name: str, output: str) -> Metric:
    formula, rows = BUILT_IN[name]

    def of_output(outputs: Feeds, labels: Array | None) -> Array:
        if labels is None:
            raise InputError(f"the metric `{name}` needs labels", hint="name their array with --labels NAME")
        return rows(outputs[output], labels)

    return Metric(name, formula, of_output, output, whole=name == "spearman")


def _users_own(module: str, name: str) -> Metric:
    """Import the user's function; the working folder is on the import path. Raises InputError when that fails."""
    try:
        with current_folder_importable():
            function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # user code that calls sys.exit(0) must not look like success
        raise InputError(
            f"`{module}:{name}` cannot be imported: {type(error).__name__}: {error}",
            where="--metric",
            hint="name a function (outputs, labels) -> one number per sample, or one number for all",
        ) from error
    lower = bool(getattr(function, "lower_is_better", False))
    rows = functools.partial(_call, function, f"{module}:{name}")
    return Metric(f"{module}:{name}", "ratio", rows, whole=True, higher_is_better=not lower)


def _call(function: Callable[[Feeds, Array | None], object], name: str, outputs: Feeds, labels: Array | None) -> Array:
    samples = len(next(iter(outputs.values())))
    try:
        result = np.asarray(function(outputs, labels), dtype=np.float64)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the metric `{name}` failed: {type(error).__name__}: {error}",
            where="--metric",
            hint="it is called with {output name: array, first axis samples} and the labels",
        ) from error
    if result.shape == (samples,):
        return np.stack([result, np.ones(samples)], axis=1)
    if result.ndim == 0:
        return result
    raise InputError(
        f"the metric `{name}` returned shape {list(result.shape)} for {samples} samples",
        where="--metric",
        hint="return one number per sample, or one number for all",
    )


def _top(k: int, scores: Array, labels: Array) -> Array:
    """Return `[samples, 2]`: hits among the k largest scores of the last axis, and labels that count."""
    _require_classes(labels, scores.shape[:-1], f"top{k}")
    if scores.shape[-1] <= k:
        raise InputError(
            f"top{k} of {scores.shape[-1]} scores is always 1",
            where="--metric",
            hint="use top1, or another metric",
        )
    _require_known(labels, scores.shape[-1])
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    hit = (best == labels[..., None]).any(axis=-1) & ~np.isnan(scores).any(axis=-1)
    counted = labels >= 0
    return np.stack([_per_sample(hit & counted), _per_sample(counted)], axis=1)


def _classes(axis: int, name: str, scores: Array, labels: Array) -> Array:
    """Return `[samples, 3 * classes]`: hits, predictions and labels by class. An output of integers holds classes."""
    predicted, classes = _predicted(scores, axis)
    _require_classes(labels, predicted.shape, name)
    counted = (labels >= 0) & ~((labels == IGNORED) & (name in OF_PIXELS))
    _require_known(np.where(counted, labels, 0), classes)
    hits = _tally(labels, counted & (predicted == labels), classes)
    guesses = _tally(predicted, counted & (predicted >= 0), classes)
    return np.concatenate([hits, guesses, _tally(labels, counted, classes)], axis=1)


def _predicted(scores: Array, axis: int) -> tuple[Array, int]:
    """Return the class with the largest score, -1 where a score is NaN, and the number of classes."""
    if scores.dtype.kind in "iu":
        return np.where((scores >= 0) & (scores < MAP_CLASSES), scores, -1).astype(np.int64), MAP_CLASSES
    if scores.ndim < 2 or scores.shape[axis] < 2:
        raise InputError(
            f"an output of shape {list(scores.shape)} does not hold scores of classes",
            where="--metric",
            hint="write your own metric as module:function",
        )
    return np.where(np.isnan(scores).any(axis=axis), -1, scores.argmax(axis=axis)), scores.shape[axis]


def _tally(classes: Array, counted: Array, count: int) -> Array:
    """Return `[samples, count]`: how often each class occurs in each sample, where `counted` is true."""
    samples = np.broadcast_to(np.arange(len(classes)).reshape(-1, *[1] * (classes.ndim - 1)), classes.shape)
    flat = samples[counted] * count + classes[counted]
    return np.bincount(flat, minlength=len(classes) * count).reshape(len(classes), count)


def _spearman(scores: Array, labels: Array) -> Array:
    """Return the moments of the ranks of similarities and labels; resampling does not rank anew.

    An output of one number per row holds similarities. Of embeddings, rows 2i and 2i+1 are a pair: their cosine is the
    similarity, and the label of row 2i belongs to it.
    """
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    if labels.shape not in ((len(flat),), (len(flat), 1)) or labels.dtype.kind not in "fiu":
        raise SampleError(
            f"labels of shape {list(labels.shape)} and dtype {labels.dtype} are not similarities of {len(flat)} rows",
            where="--labels",
            hint="give one number per row, the same one for both rows of a pair",
        )
    labels = labels.reshape(-1)
    if flat.shape[1] > 1:
        if len(flat) % 2:
            raise SampleError(
                f"{len(flat)} embeddings cannot be paired",
                where="--metric spearman",
                hint="rows 2i and 2i+1 are compared: give an even number of them",
            )
        first, second = flat[0::2], flat[1::2]
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        flat, labels = ((first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1))[:, None], labels[0::2]
    from scipy.stats import rankdata  # takes a second to import

    x, y = rankdata(flat[:, 0]), rankdata(labels)
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _require_classes(labels: Array, shape: tuple[int, ...], name: str) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != shape:
        raise SampleError(
            f"labels of shape {list(labels.shape)} and dtype {labels.dtype} do not fit `{name}`",
            where="--labels",
            hint=f"it needs classes: integers of shape {list(shape)}",
        )


def _require_known(labels: Array, classes: int) -> None:
    if (largest := int(labels.max(initial=0))) >= classes:
        raise SampleError(
            f"the labels hold class {largest}, but the output has {classes} classes",
            where="--labels",
            hint=f"classes go from 0 to {classes - 1}; label elements that must not count -1",
        )


def _per_sample(flags: Array) -> Array:
    total: Array = flags.reshape(len(flags), -1).sum(axis=1)
    return total


BUILT_IN: dict[str, tuple[str, Rows]] = {
    "top1": ("ratio", functools.partial(_top, 1)),
    "accuracy": ("ratio", functools.partial(_top, 1)),
    "top5": ("ratio", functools.partial(_top, 5)),
    "f1": ("f1", functools.partial(_classes, -1, "f1")),
    "miou": ("iou", functools.partial(_classes, 1, "miou")),
    "dice": ("f1", functools.partial(_classes, 1, "dice")),
    "spearman": ("correlation", _spearman),
}
"""Formula and rows of each built-in metric, by name."""
