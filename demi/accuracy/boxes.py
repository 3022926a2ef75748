"""Read boxes from a detector's outputs, in any of its layouts. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demi.accuracy.detector import Columns, Detector
from demi.tensors import Array, Feeds


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one or more images; every array has one row per box."""

    corners: Array
    """float64 [n, 4]: two low and two high coordinates."""
    scores: Array
    """float64 [n]; NaN where the outputs hold no scores."""
    classes: Array
    """int64 [n]; -1 where the outputs hold no classes."""
    images: Array
    """int64 [n]: index of the image."""
    rows: Array
    """int64 [n]: row of the outputs that the box was read from."""

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, chosen: Array) -> Boxes:
        """Return the boxes selected by positions or by a mask."""
        return Boxes(*(getattr(self, name)[chosen] for name in self.__slots__))


def read_boxes(detector: Detector, outputs: Feeds) -> Boxes:
    """Return all boxes of one set of outputs; padding rows and rows with non-finite numbers are skipped."""
    table = outputs[detector.boxes]
    flat = flat_rows(table)
    count = len(flat)
    images = np.repeat(np.arange(images_of(table)), count // max(images_of(table), 1))
    if detector.places:
        return _of_places(flat)
    columns = detector.columns or Columns(0, 0)
    coordinates = flat[:, columns.first : columns.first + 4].astype(np.float64)
    if detector.columns is not None:
        scores = flat[:, columns.score].astype(np.float64)
        labels = None if columns.label is None else flat[:, columns.label]
        images = images if columns.image is None else _whole(flat[:, columns.image])
    else:
        scores, labels = _scores(detector, outputs, count)
    corners = corners_of(coordinates, detector.by_centre)
    valid = np.isfinite(corners).all(axis=1) & (
        np.isfinite(scores) | (detector.columns is None and detector.scores is None)
    )
    valid &= np.any(coordinates != 0, axis=1) | (np.nan_to_num(scores) != 0)
    if detector.count is not None and (detector.columns is None or detector.columns.image is None):
        valid &= _filled(outputs[detector.count], images, count)
    classes = np.full(count, -1) if labels is None else _whole(labels)
    return Boxes(corners, scores, classes, images, np.arange(count)).only(valid)


def flat_rows(table: Array) -> Array:
    """Return the table as [rows, columns]; all axes before the last are joined."""
    return table.reshape(-1, table.shape[-1])


def images_of(table: Array) -> int:
    """Return the number of images of a table without an image column: the axis before the rows, or 1 without one."""
    return table.shape[0] if table.ndim > 2 else 1


def corners_of(coordinates: Array, by_centre: bool) -> Array:
    """Return boxes given by any two opposite corners, or by centre and size, as [n, 4]: (low, low, high, high)."""
    first, second = coordinates[:, :2], coordinates[:, 2:]
    if by_centre:
        first, second = first - second / 2, first + second / 2
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)


def overlaps(one: Array, other: Array) -> Array:
    """Return the IoU of every box of `one` with every box of `other`, [n, m]; 1 for equal boxes without an area."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.clip(high - low, 0.0, None).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (one, other)]
    union = areas[0][:, None] + areas[1][None, :] - both
    equal = (one[:, None] == other[None]).all(axis=2)
    return np.where(equal, 1.0, np.divide(both, union, out=np.zeros_like(both), where=union > 0))


def _of_places(flat: Array) -> Boxes:
    """Return a unit square for every selected place, such that different places do not overlap."""
    image, label, place = (flat[:, i].astype(np.int64) for i in range(3))
    low = np.stack([2.0 * place, np.zeros(len(flat))], axis=1)
    nothing = np.full(len(flat), np.nan)
    return Boxes(np.concatenate([low, low + 1], axis=1), nothing, label, image, np.arange(len(flat)))


def _scores(detector: Detector, outputs: Feeds, count: int) -> tuple[Array, Array | None]:
    """Return a score for each row, and classes where the outputs hold them."""
    labels = None if detector.classes is None else _column(detector.classes, outputs, count, -1)
    table = None if detector.scores is None else outputs[detector.scores]
    if table is None or not count or table.size == count:
        scores = _column(detector.scores, outputs, count, np.nan)
    else:
        by_class = table.reshape(count, -1).astype(np.float64)
        scores = by_class.max(axis=1)
        labels = by_class.argmax(axis=1) if labels is None else labels
    return (1 / (1 + np.exp(-np.clip(scores, -80, 80))) if detector.logits else scores), labels


def _column(name: str | None, outputs: Feeds, count: int, default: float) -> Array:
    if name is None:
        return np.full(count, default)
    values = outputs[name].reshape(-1).astype(np.float64)
    return values if len(values) == count else np.full(count, np.nan)


def _whole(values: Array) -> Array:
    return np.nan_to_num(np.rint(values.astype(np.float64)), nan=-1.0, posinf=-1.0, neginf=-1.0).astype(np.int64)


def _filled(counts: Array, images: Array, rows: int) -> Array:
    """Return a mask of the rows that hold a box, from the number of boxes of each image."""
    numbers = _whole(counts.reshape(-1))
    in_image = np.arange(rows) - np.searchsorted(images, images)
    return in_image < numbers[np.minimum(images, len(numbers) - 1)] if len(numbers) else np.ones(rows, bool)
