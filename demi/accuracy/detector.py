"""Which outputs are a detector's, and what their columns mean: enough to read boxes from any answer of the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of packed rows hold: the first of four coordinates, the score, the class, the image."""

    first: int
    score: int
    label: int | None = None
    image: int | None = None


@dataclass(frozen=True, slots=True)
class Detector:
    """The outputs of one detector, by name, whose rows come in an order that the numbers decide.

    Three layouts are known: boxes, scores and classes apart, rows of one tensor (`columns`), and the places that a
    NonMaxSuppression selects (`places`). All of `rows` have a row for each box.
    """

    boxes: str
    """The output with the coordinates, the packed rows or the selected places; its limits are the detector's."""
    scores: str | None = None
    """A score for each box, or one for each class of it: then the best one counts, and is its class."""
    classes: str | None = None
    count: str | None = None
    """How many rows of each image hold a box; the others are filling."""
    others: tuple[str, ...] = ()
    """More outputs with a row for each box: masks, keypoints."""
    columns: Columns | None = None
    by_centre: bool = False
    """Coordinates are (x, y, width, height) of a centre, not two corners."""
    logits: bool = False
    """Scores are logits, whose sigmoid is meant."""
    places: bool = False
    """Rows are (image, class, place) of a NonMaxSuppression: a box is told by its place alone."""
    overlap: float | None = None
    """The IoU from which the model itself suppresses a box, where its graph says so."""
    most: int | None = None
    """How many boxes of an image the model returns at most, where its graph says so."""

    @property
    def rows(self) -> tuple[str, ...]:
        """The outputs that have a row for each box."""
        return tuple(name for name in (self.boxes, self.scores, self.classes, *self.others) if name is not None)

    @property
    def outputs(self) -> tuple[str, ...]:
        """All of its outputs."""
        return self.rows if self.count is None else (*self.rows, self.count)
