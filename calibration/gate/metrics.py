"""Task metrics: what a model is for, as a figure, from its outputs and the right answers.

A built-in metric looks at one output. A user's own, `module:function`, is given all outputs and the labels, and returns
one number per sample, whose mean is the score and which allow a paired bootstrap, or one number for all, which is
compared as it is.
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
"""The label that segmentation data sets give to pixels that belong to no class; negative labels are ignored everywhere."""
MAP_CLASSES = 256
"""Classes of an output that is a map of class numbers already."""

Rows = Callable[[Array, Array], Array]
"""One output and the labels, first axis samples, to one row of numbers per sample."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a score follows from outputs and labels."""

    name: str
    formula: str
    """In `demi.calibration.gate.measure.FORMULAS`."""
    rows: Callable[[Feeds, Array | None], Array]
    """Outputs and labels to `[samples, numbers]`, or to a single number that no formula is needed for."""
    output: str | None = None
    whole: bool = False
    """Whether it must see all samples at once; others are told batch by batch."""
    higher_is_better: bool = True


def find_metric(text: str, outputs: Sequence[TensorSpec]) -> Metric:
    """The metric of `top1`, `OUTPUT:top1` or `module:function`; InputError says which there are."""
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
            f"the model has the outputs {', '.join(names)}: which one is `{text}` about?",
            where="--metric",
            hint=f"write it as {names[0]}:{text}",
        )
    return names[0]


def _built_in(name: str, output: str) -> Metric:
    formula, rows = BUILT_IN[name]

    def of_output(outputs: Feeds, labels: Array | None) -> Array:
        if labels is None:
            raise InputError(f"the metric `{name}` needs the right answers", hint="name their array with --labels NAME")
        return rows(outputs[output], labels)

    return Metric(name, formula, of_output, output, whole=name == "spearman")


def _users_own(module: str, name: str) -> Metric:
    """A function of the user's, found as Python finds modules, the working folder included."""
    try:
        with current_folder_importable():
            function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # their own code may end the process: it must not look like success
        raise InputError(
            f"`{module}:{name}` cannot be imported: {type(error).__name__}: {error}",
            where="--metric",
            hint="name a function (outputs, labels) -> one number per sample, or one for all",
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
        hint="return one number per sample, or one for all",
    )


def _top(k: int, scores: Array, labels: Array) -> Array:
    """Hits among the k largest scores of the last axis, and labels that count."""
    _require_classes(labels, scores.shape[:-1], f"top{k}")
    if scores.shape[-1] <= k:
        raise InputError(
            f"top{k} of {scores.shape[-1]} scores is always right",
            where="--metric",
            hint="use top1, or a metric that can be wrong",
        )
    _require_known(labels, scores.shape[-1])
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    hit = (best == labels[..., None]).any(axis=-1) & ~np.isnan(scores).any(axis=-1)
    counted = labels >= 0
    return np.stack([_per_sample(hit & counted), _per_sample(counted)], axis=1)


def _classes(axis: int, name: str, scores: Array, labels: Array) -> Array:
    """Hits, predictions and labels of each class: `[samples, 3 * classes]`. An output of integers is read as classes."""
    predicted, classes = _predicted(scores, axis)
    _require_classes(labels, predicted.shape, name)
    counted = (labels >= 0) & ~((labels == IGNORED) & (name == "miou"))
    _require_known(np.where(counted, labels, 0), classes)
    hits = _tally(labels, counted & (predicted == labels), classes)
    guesses = _tally(predicted, counted & (predicted >= 0), classes)
    return np.concatenate([hits, guesses, _tally(labels, counted, classes)], axis=1)


def _predicted(scores: Array, axis: int) -> tuple[Array, int]:
    """The class with the largest score, -1 where a score is NaN, and how many classes there are."""
    if scores.dtype.kind in "iu":
        return np.where((scores >= 0) & (scores < MAP_CLASSES), scores, -1).astype(np.int64), MAP_CLASSES
    if scores.ndim < 2 or scores.shape[axis] < 2:
        raise InputError(
            f"an output of shape {list(scores.shape)} holds no scores of classes",
            where="--metric",
            hint="write your own metric as module:function",
        )
    return np.where(np.isnan(scores).any(axis=axis), -1, scores.argmax(axis=axis)), scores.shape[axis]


def _tally(classes: Array, counted: Array, count: int) -> Array:
    """How often each class occurs in each sample, where it counts: `[samples, count]`."""
    samples = np.broadcast_to(np.arange(len(classes)).reshape(-1, *[1] * (classes.ndim - 1)), classes.shape)
    flat = samples[counted] * count + classes[counted]
    return np.bincount(flat, minlength=len(classes) * count).reshape(len(classes), count)


def _spearman(scores: Array, labels: Array) -> Array:
    """Moments of the ranks of similarities and labels; the ranks stay as they are when samples are resampled.

    An output of one number per row is a similarity; of embeddings, rows 2i and 2i+1 are a pair with one label (that of
    row 2i), and their cosine is the similarity.
    """
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    if labels.shape not in ((len(flat),), (len(flat), 1)) or labels.dtype.kind not in "fiu":
        raise SampleError(
            f"labels of shape {list(labels.shape)} and dtype {labels.dtype} are no similarities of {len(flat)} rows",
            where="--labels",
            hint="give one number per row; both rows of a pair carry the same",
        )
    labels = labels.reshape(-1)
    if flat.shape[1] > 1:
        if len(flat) % 2:
            raise SampleError(
                f"{len(flat)} embeddings are no pairs",
                where="--metric spearman",
                hint="rows 2i and 2i+1 are compared: give an even number of them",
            )
        first, second = flat[0::2], flat[1::2]
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        flat, labels = ((first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1))[:, None], labels[0::2]
    from scipy.stats import rankdata  # it takes a second to import

    x, y = rankdata(flat[:, 0]), rankdata(labels)
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _require_classes(labels: Array, shape: tuple[int, ...], name: str) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != shape:
        raise SampleError(
            f"labels of shape {list(labels.shape)} and dtype {labels.dtype} do not fit `{name}`",
            where="--labels",
            hint=f"it needs integers of shape {list(shape)}, a class for each",
        )


def _require_known(labels: Array, classes: int) -> None:
    if (largest := int(labels.max(initial=0))) >= classes:
        raise SampleError(
            f"the labels hold class {largest}, the output has {classes}",
            where="--labels",
            hint=f"classes count from 0 to {classes - 1}; give -1 to what shall not count",
        )


def _per_sample(flags: Array) -> Array:
    total: Array = flags.reshape(len(flags), -1).sum(axis=1)
    return total


BUILT_IN: dict[str, tuple[str, Rows]] = {
    "top1": ("ratio", functools.partial(_top, 1)),
    "top5": ("ratio", functools.partial(_top, 5)),
    "f1": ("f1", functools.partial(_classes, -1, "f1")),
    "miou": ("iou", functools.partial(_classes, 1, "miou")),
    "spearman": ("correlation", _spearman),
}
"""Each metric's formula, and what a sample contributes."""
