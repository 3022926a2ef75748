"""NudeNet's detector: a YOLO head on pictures of 320 by 320; boxes are suppressed outside the model.

Inputs and boxes are made as nudenet makes them, with Pillow's interpolation for OpenCV's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from demi.tensors import Array, Feeds
from tests.wild.pictures import picture, resized
from tests.wild.task import Run

SIDE = 320


def model_input(*images: Image.Image) -> Feeds:
    """Return pictures padded at the right and below to a square: float32[n, 3, 320, 320] in RGB, from 0 to 1."""
    rows = []
    for image in images:
        square = Image.new("RGB", (max(image.size),) * 2)
        square.paste(image, (0, 0))
        rows.append(resized(square, SIDE, SIDE).transpose(2, 0, 1).astype(np.float32) / 255)
    return {"images": np.stack(rows)}


def samples(_: Run) -> list[Feeds]:
    """Return people and a cat, alone and in a batch."""
    return [
        model_input(picture("astronaut.png")),
        model_input(picture("camera.png"), picture("chelsea.png")),
        model_input(picture("coffee.png")),
    ]


def heldout(_: Run) -> list[Feeds]:
    """Return the same people in other crops, and objects."""
    astronaut = picture("astronaut.png")
    return [
        model_input(ImageOps.mirror(astronaut), astronaut.crop((80, 0, 400, 300))),
        model_input(astronaut.crop((140, 0, 330, 240)).convert("L").convert("RGB")),
        model_input(ImageOps.mirror(picture("camera.png")), picture("rocket.jpg")),
        model_input(picture("motorcycle_left.png")),
    ]


@dataclass(frozen=True, slots=True)
class Box:
    """A detection: left, top, right, bottom in pixels of the model's input."""

    kind: int
    score: float
    edges: tuple[float, float, float, float]


def detections(run: Run) -> list[list[Box]]:
    """Return the boxes of every held-out picture: scores of at least 0.25, suppressed above an overlap of 0.45."""
    return [_suppressed(rows.T) for feeds in heldout(run) for rows in next(iter(run(feeds).values()))]


def _suppressed(rows: Array) -> list[Box]:
    scores, kinds = rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)
    kept: list[Box] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < 0.25:
            break
        x, y, width, height = (float(value) for value in rows[index, :4])
        edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if all(overlap(edges, box.edges) <= 0.45 for box in kept):
            kept.append(Box(int(kinds[index]), float(scores[index]), edges))
    return kept


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the intersection over union."""
    wide, high = (max(0.0, min(a[side + 2], b[side + 2]) - max(a[side], b[side])) for side in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return wide * high / max(areas - wide * high, 1e-9)


def unmatched(expected: list[list[Box]], got: list[list[Box]]) -> str:
    """Describe differing boxes: each must match one of the same kind, an overlap of 0.9 and a score within 0.02."""
    found = []
    for index, (theirs, ours) in enumerate(zip(expected, got, strict=True)):
        left = list(ours)
        for box in theirs:
            match = next((other for other in left if _alike(box, other)), None)
            if match is None:
                found.append(f"picture {index} lacks {box}")
            else:
                left.remove(match)
        found += [f"picture {index} has {box} besides" for box in left]
    return "; ".join(found)


def _alike(a: Box, b: Box) -> bool:
    return a.kind == b.kind and overlap(a.edges, b.edges) >= 0.9 and abs(a.score - b.score) <= 0.02
