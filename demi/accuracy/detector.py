"""Description of a detector's outputs and their columns, from which boxes can be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Columns:
    """Column indices of packed rows: the first of four coordinates, the score, the class, the image."""

    first: int
    score: int
    label: int | None = None
    image: int | None = None


@dataclass(frozen=True, slots=True)
class Detector:
    """The outputs of one detector, by name. The order of their rows depends on the numbers.

    There are three layouts: separate boxes, scores and classes; packed rows of one tensor (`columns`); and the places
    that a NonMaxSuppression selects (`places`). All outputs in `rows` have one row per box.
    """

    boxes: str
    """The output with the coordinates, the packed rows or the selected places; its limits are the detector's."""
    scores: str | None = None
    """One score per box, or one per box and class: the best of these counts and gives the class."""
    classes: str | None = None
    count: str | None = None
    """The output with the number of boxes of each image; further rows are padding."""
    others: tuple[str, ...] = ()
    """More outputs with one row per box: masks, keypoints."""
    columns: Columns | None = None
    by_centre: bool = False
    """True if coordinates are (x, y, width, height) with the centre first, instead of two corners."""
    logits: bool = False
    """True if scores are logits, to which a sigmoid is applied."""
    places: bool = False
    """True if rows are (image, class, place) of a NonMaxSuppression, which identify a box by its place alone."""
    overlap: float | None = None
    """The IoU from which the model suppresses a box; None where its graph does not contain it."""
    most: int | None = None
    """Most boxes of an image that the model returns; None where its graph does not contain it."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Return the outputs that have one row per box."""
        return tuple(name for name in (self.boxes, self.scores, self.classes, *self.others) if name is not None)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return all of its outputs."""
        return self.rows if self.count is None else (*self.rows, self.count)
