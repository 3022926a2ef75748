"""Match the boxes of two answers by overlap and class, whatever their order.

Pairs are formed greedily, the largest overlap first: first within a class, then among the remaining boxes of different
classes, which are swaps. A box without a partner appeared or vanished. A box counts when its score or its partner's
reaches the score limit, so that a box that drops just below it does not count as vanished.

A box is *marginal*, listed but not counted, when FP32 on another machine might have dropped it: its score is within the
margin of the lowest score that is returned, or its overlap with a better box of its class is within the margin of the
overlap that the model suppresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from demi.accuracy.boxes import Boxes, flat_rows, overlaps, read_boxes
from demi.accuracy.budget import DEFAULT_BOXES, Limits
from demi.accuracy.detector import Detector
from demi.tensors import Array, Feeds

MOST_BOXES = 2000
"""Most boxes of an image that are matched, those with the best scores: the table of all pairs must fit into memory."""

SLACK = 0.5
"""Lowest score of a partner, as a share of the score limit; a box that dropped further counts as vanished."""

MOST_NAMED = 5
"""Most changed boxes that one line names."""

Kind = Literal["appears", "vanishes", "swaps"]


@dataclass(frozen=True, slots=True)
class BoxChange:
    """One box that is in one of the answers only, or has another class in half."""

    kind: Kind
    label: int
    """Its class, for a swap the one in FP32; -1 where the outputs hold no classes."""
    score: float | None
    """Its score, for a swap the one in FP32; None where the outputs hold no scores."""
    box: tuple[float, float, float, float]
    image: int
    other_label: int | None = None
    """For a swap, the class in half."""
    other_score: float | None = None
    """For a swap, the score in half."""
    marginal: bool = False

    def __str__(self) -> str:
        what = "a box" if self.label < 0 else f"class {self.label}"
        at = "" if self.score is None else f" at score {self.score:.4g}"
        if self.kind == "swaps":
            to = "" if self.other_score is None else f" at score {self.other_score:.4g}"
            return f"{what}{at} becomes class {self.other_label}{to}"
        return f"{what} {self.kind}{at}{' (marginal)' if self.marginal else ''}"


def describe_changes(changes: Sequence[BoxChange], found: int, changed: int) -> str:
    """Return a sentence on how many boxes changed, naming the first few; marginal ones come last."""
    counted = [change for change in changes if not change.marginal]
    marginal = len(changes) - len(counted)
    named = [*counted, *(change for change in changes if change.marginal)][:MOST_NAMED]
    return (
        f"{changed:,} of {found:,} boxes changed"
        + (f" (marginal: {marginal:,})" if marginal else "")
        + (f": {'; '.join(map(str, named))}" if named else "")
        + ("; ..." if len(changes) > len(named) else "")
    )


@dataclass(frozen=True, slots=True)
class Matching:
    """Matched boxes of two answers."""

    pairs: Array
    """int64 [k, 2]: rows of the boxes that are in both, in the reference and in the other answer."""
    images: Array
    """int64 [k]: index of the image of each pair."""
    changes: tuple[BoxChange, ...]
    rows: tuple[int, int]
    """Number of rows of the two answers, padding included."""

    @property
    def changed(self) -> int:
        """Return the number of boxes that changed, without marginal ones."""
        return sum(not change.marginal for change in self.changes)

    @property
    def counted(self) -> int:
        """Return the number of boxes that count, changed ones included."""
        return len(self.pairs) + self.changed

    def aligned(self, reference: Array, measured: Array) -> tuple[Array, Array]:
        """Return the rows of one output for the boxes in both answers, [k, columns] each."""
        if not len(self.pairs):
            return reference.reshape(-1)[:0, None], measured.reshape(-1)[:0, None]
        want, got = reference.reshape(self.rows[0], -1), measured.reshape(self.rows[1], -1)
        return want[self.pairs[:, 0]], got[self.pairs[:, 1]]


def match(detector: Detector, reference: Feeds, measured: Feeds, limits: Limits) -> Matching:
    """Match the boxes of all images in two answers under a detector's limits."""
    limits = limits.over(DEFAULT_BOXES)
    want, got = read_boxes(detector, reference), read_boxes(detector, measured)
    pairs, images = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
    changes: list[BoxChange] = []
    for image in np.unique(np.concatenate([want.images, got.images])):
        both = _Image(want.only(want.images == image), got.only(got.images == image), limits, detector)
        found = both.pairs()
        pairs.append(found)
        images.append(np.full(len(found), image))
        changes += both.changes
    rows = (len(flat_rows(reference[detector.boxes])), len(flat_rows(measured[detector.boxes])))
    return Matching(np.concatenate(pairs), np.concatenate(images), tuple(changes), rows)


class _Image:
    """Boxes of one image in both answers. Owns the list of changes, which `pairs` fills."""

    def __init__(self, want: Boxes, got: Boxes, limits: Limits, detector: Detector) -> None:
        self._returned = (want, got)
        self._floor = limits.score or 0.0
        self._limits = limits
        self._detector = detector
        self._want, self._got = (_best(each.only(_reaches(each.scores, SLACK * self._floor))) for each in (want, got))
        self.changes: list[BoxChange] = []

    def pairs(self) -> Array:
        """Return the rows of the boxes that are in both answers and count, [k, 2], and record all changes."""
        want, got = self._want, self._got
        overlap = overlaps(want.corners, got.corners)
        close = overlap >= (self._limits.iou or 0.0)
        same = want.classes[:, None] == got.classes[None, :]
        taken = _greedy(np.where(close & same, overlap, -1.0))
        left = np.ones(overlap.shape, bool)
        left[[i for i, _ in taken], :] = False
        left[:, [j for _, j in taken]] = False
        swapped = [pair for pair in _greedy(np.where(close & ~same & left, overlap, -1.0)) if self._count(*pair)]
        self.changes += [self._swap(i, j) for i, j in swapped]
        self._alone("vanishes", 0, {i for i, _ in (*taken, *swapped)})
        self._alone("appears", 1, {j for _, j in (*taken, *swapped)})
        counted = [(want.rows[i], got.rows[j]) for i, j in taken if self._count(i, j)]
        return np.array(counted, np.int64).reshape(-1, 2)

    def _count(self, i: int, j: int) -> bool:
        """Return whether a pair counts: one of the two scores reaches the limit."""
        scores = np.array([self._want.scores[i], self._got.scores[j]])
        return bool(_reaches(scores, self._floor).any())

    def _swap(self, i: int, j: int) -> BoxChange:
        want, got = self._want, self._got
        return BoxChange(
            "swaps",
            int(want.classes[i]),
            _score(want.scores[i]),
            _box(want.corners[i]),
            int(want.images[i]),
            int(got.classes[j]),
            _score(got.scores[j]),
        )

    def _alone(self, kind: Kind, side: int, partnered: set[int]) -> None:
        """Record the boxes of one answer that reach the score limit and have no partner in the other."""
        own = self._got if side else self._want
        rivals = own.only(np.array(sorted(partnered), np.int64))
        for i in np.flatnonzero(_reaches(own.scores, self._floor)):
            if int(i) in partnered:
                continue
            marginal = self._is_at_the_edge(own, int(i), side) or self._is_nearly_suppressed(own, int(i), rivals)
            self.changes.append(
                BoxChange(
                    kind,
                    int(own.classes[i]),
                    _score(own.scores[i]),
                    _box(own.corners[i]),
                    int(own.images[i]),
                    marginal=marginal,
                )
            )

    def _is_at_the_edge(self, own: Boxes, i: int, side: int) -> bool:
        """Return whether its score is within the margin of the lowest score that the other answer returns."""
        elsewhere = self._returned[1 - side]
        edge = self._floor
        if self._detector.most is not None and len(elsewhere) >= self._detector.most:
            edge = max(edge, float(np.nanmin(elsewhere.scores)))
        return bool(own.scores[i] < edge + (self._limits.margin or 0.0))

    def _is_nearly_suppressed(self, own: Boxes, i: int, rivals: Boxes) -> bool:
        """Return whether a better box of its class overlaps it within the margin of what the model suppresses."""
        most = self._detector.overlap
        if most is None or not len(rivals):
            return False
        better = rivals.only((rivals.classes == own.classes[i]) & ~(rivals.scores < own.scores[i]))
        overlap = overlaps(own.corners[i : i + 1], better.corners)
        return bool((np.abs(overlap - most) < (self._limits.margin or 0.0)).any())


def _reaches(scores: Array, floor: float) -> Array:
    """Return a mask of the scores that reach the limit; a missing score (NaN) always does."""
    reaches: Array = ~(scores < floor)
    return reaches


def _best(boxes: Boxes) -> Boxes:
    """Return the `MOST_BOXES` boxes with the best scores, in their original order."""
    if len(boxes) <= MOST_BOXES:
        return boxes
    return boxes.only(np.sort(np.argsort(-np.nan_to_num(boxes.scores, nan=np.inf), kind="stable")[:MOST_BOXES]))


def _greedy(weights: Array) -> list[tuple[int, int]]:
    """Return pairs (row, column) by descending weight, each row and column once; negative weights are never paired."""
    taken: list[tuple[int, int]] = []
    rows, columns = np.nonzero(weights >= 0)
    free = [np.ones(size, bool) for size in weights.shape]
    for position in np.argsort(-weights[rows, columns], kind="stable"):
        i, j = int(rows[position]), int(columns[position])
        if free[0][i] and free[1][j]:
            free[0][i] = free[1][j] = False
            taken.append((i, j))
    return taken


def _score(score: float) -> float | None:
    return None if np.isnan(score) else float(score)


def _box(corners: Array) -> tuple[float, float, float, float]:
    a, b, c, d = (float(number) for number in corners)
    return a, b, c, d
