"""The safety of a NonMaxSuppression: the distance of each box from a change of its selection.

A box is selected because its score passes the threshold, no better selected box overlaps it, and the next selected one
is worse. It is not selected when one reason holds: its score is below the threshold, a better selected box overlaps it,
or enough boxes were selected before it. While none of these conditions changes, the selection and its order are the
same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from demi.tensors import Array


@dataclass(frozen=True, slots=True)
class Suppression:
    """One class of one image: its boxes, [N, 4] as (low y, low x, high y, high x), and their scores, [N]."""

    boxes: Array
    scores: Array
    overlap: float
    least: float
    most: int
    """Largest number of selected boxes."""
    moves: tuple[float, float]
    """Largest error of half in a coordinate, and in a score."""

    def weakest_link(self) -> float:
        """Return the distance of the nearest other selection, as a multiple of half's error."""
        out = self._ratio(self.least - self.scores)  # below the threshold: the larger, the surer it stays out
        order = np.argsort(-self.scores, kind="stable")
        waiting = [int(i) for i in order if self.scores[i] > self.least]
        suppressed = np.zeros(len(self.scores), bool)
        taken: list[int] = []
        links = [math.inf]
        for i in waiting:
            if suppressed[i] or len(taken) == self.most:
                continue
            surplus, sure = self._overlaps(i)
            links.append(float(self._ratio(self.scores[i] - self.least)))
            links += [float(self._ratio(self.scores[taken[-1]] - self.scores[i]))] if taken else []
            links += [float(sure[j]) for j in taken]
            hit = surplus > 0
            suppressed |= hit
            by_this = np.minimum(self._ratio(self.scores[i] - self.scores), sure)
            out = np.where(hit, np.maximum(out, by_this), out)
            taken.append(i)
        if len(taken) == self.most:
            out = np.maximum(out, self._ratio(self.scores[taken[-1]] - self.scores))
        out[taken] = math.inf
        return float(min(min(links), out.min(initial=math.inf)))

    def _overlaps(self, i: int) -> tuple[Array, Array]:
        """For each box, by how much its intersection with box `i` is too large, and how sure that sign is.

        A coordinate that moves by d changes the intersection by at most 2d (w + h), an area likewise, to first order.
        """
        low = np.maximum(self.boxes[:, :2], self.boxes[i, :2])
        high = np.minimum(self.boxes[:, 2:], self.boxes[i, 2:])
        sides = np.maximum(high - low, 0.0)
        extents = self.boxes[:, 2:] - self.boxes[:, :2]
        both = sides.prod(axis=1)
        areas = extents.prod(axis=1)
        surplus = both - self.overlap * (areas + areas[i] - both)
        slope = 2 * ((1 + self.overlap) * sides.sum(axis=1) + self.overlap * (extents.sum(axis=1) + extents[i].sum()))
        distance = np.divide(np.abs(surplus), slope, out=np.full(len(slope), math.inf), where=slope > 0)
        apart = np.max(low - high, axis=1)  # boxes that do not touch must first come to
        return surplus, self._divided(np.maximum(distance, apart / 2), self.moves[0])

    def _ratio(self, differences: Array) -> Array:
        return self._divided(differences, self.moves[1])

    @staticmethod
    def _divided(distances: Array, move: float) -> Array:
        if move > 0:
            return np.asarray(distances / move)
        return np.where(np.asarray(distances) >= 0, math.inf, -math.inf)


def corners(boxes: Array, by_centre: bool) -> Array:
    """[batch, N, 4] as (low, low, high, high), whatever diagonal or centre the boxes were given by."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if by_centre:
        first, second = first - second / 2, first + second / 2
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)
