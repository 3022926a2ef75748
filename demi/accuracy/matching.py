"""Matching the boxes of two answers as a detector's users see them: by overlap and class, in whatever order.

The pair that overlaps most is taken first, within a class; what is left may pair with a box of another class, which is a
swap. A box without a partner has appeared, or vanished. A box counts when its score, or its partner's, reaches the
floor: nobody looks at the others, though a box that slips just below it is still there.

A box so near to being left out that another machine's FP32 might have left it out is *marginal*: listed, not counted. Its
score is within the margin of the least that is returned, or its overlap with a better box of its class within the margin
of what the model itself suppresses.
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
"""Of each image so many boxes are matched, those with the best scores: a table of all pairs has to fit."""

SLACK = 0.5
"""A partner may have this share of the floor: a box whose score fell further than that is gone."""

MOST_NAMED = 5
"""Boxes that changed are named in a line up to so many."""

Kind = Literal["appears", "vanishes", "swaps"]


@dataclass(frozen=True, slots=True)
class BoxChange:
    """One box that is not in both answers, or of another class in half."""

    kind: Kind
    label: int
    """Its class; in FP32 where it has one there. -1 where the outputs hold none."""
    score: float | None
    """Its score; in FP32 where it has one there. None where the outputs hold none."""
    box: tuple[float, float, float, float]
    image: int
    other_label: int | None = None
    """Of a swap: the class in half, and the score there."""
    other_score: float | None = None
    marginal: bool = False

    def __str__(self) -> str:
        what = "a box" if self.label < 0 else f"class {self.label}"
        at = "" if self.score is None else f" at score {self.score:.4g}"
        if self.kind == "swaps":
            to = "" if self.other_score is None else f" at score {self.other_score:.4g}"
            return f"{what}{at} becomes class {self.other_label}{to}"
        return f"{what} {self.kind}{at}{' (marginal)' if self.marginal else ''}"


def told(changes: Sequence[BoxChange], found: int, changed: int) -> str:
    """How many of the boxes changed, and the first few of them; marginal ones after the others."""
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
    """The boxes of two answers beside each other."""

    pairs: Array
    """int64 [k, 2]: the rows of the boxes that are in both, in the reference and in the other answer."""
    images: Array
    """int64 [k]: of which image each pair is."""
    changes: tuple[BoxChange, ...]
    rows: tuple[int, int]
    """How many rows the two answers have, those of no boxes included."""

    @property
    def changed(self) -> int:
        """How many boxes changed, marginal ones aside."""
        return sum(not change.marginal for change in self.changes)

    @property
    def counted(self) -> int:
        """How many boxes there are, those that changed included."""
        return len(self.pairs) + self.changed

    def aligned(self, reference: Array, measured: Array) -> tuple[Array, Array]:
        """One output's rows of the boxes that are in both, [k, columns] each."""
        if not len(self.pairs):
            return reference.reshape(-1)[:0, None], measured.reshape(-1)[:0, None]
        want, got = reference.reshape(self.rows[0], -1), measured.reshape(self.rows[1], -1)
        return want[self.pairs[:, 0]], got[self.pairs[:, 1]]


def match(detector: Detector, reference: Feeds, measured: Feeds, limits: Limits) -> Matching:
    """Match all images of two answers under a detector's limits."""
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
    """One image's boxes in both answers. Owns the list of what changed, which `pairs` fills."""

    def __init__(self, want: Boxes, got: Boxes, limits: Limits, detector: Detector) -> None:
        self._returned = (want, got)
        self._floor = limits.score or 0.0
        self._limits = limits
        self._detector = detector
        self._want, self._got = (_best(each.only(_reaches(each.scores, SLACK * self._floor))) for each in (want, got))
        self.changes: list[BoxChange] = []

    def pairs(self) -> Array:
        """The rows of the boxes that are in both answers and count, [k, 2]."""
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
        """Whether anybody looks at a pair: one of the two reaches the floor."""
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
        """Note the boxes of one answer that reach the floor and have no partner in the other."""
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
        """Whether its score is hardly more than what the other answer leaves out."""
        elsewhere = self._returned[1 - side]
        edge = self._floor
        if self._detector.most is not None and len(elsewhere) >= self._detector.most:
            edge = max(edge, float(np.nanmin(elsewhere.scores)))
        return bool(own.scores[i] < edge + (self._limits.margin or 0.0))

    def _is_nearly_suppressed(self, own: Boxes, i: int, rivals: Boxes) -> bool:
        """Whether a better box of its class overlaps it by hardly less than what the model suppresses."""
        most = self._detector.overlap
        if most is None or not len(rivals):
            return False
        better = rivals.only((rivals.classes == own.classes[i]) & ~(rivals.scores < own.scores[i]))
        overlap = overlaps(own.corners[i : i + 1], better.corners)
        return bool((np.abs(overlap - most) < (self._limits.margin or 0.0)).any())


def _reaches(scores: Array, floor: float) -> Array:
    """Which scores count; a box without one always does."""
    reaches: Array = ~(scores < floor)
    return reaches


def _best(boxes: Boxes) -> Boxes:
    """The boxes with the best scores, in their order, no more than can be matched."""
    if len(boxes) <= MOST_BOXES:
        return boxes
    return boxes.only(np.sort(np.argsort(-np.nan_to_num(boxes.scores, nan=np.inf), kind="stable")[:MOST_BOXES]))


def _greedy(weights: Array) -> list[tuple[int, int]]:
    """Pairs by weight, the heaviest first, each row and column once; negative weights are no pairs."""
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
