"""Drawn road scenes for the driving example: synthetic pictures, and the boxes of what is on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 96, 160
CLASSES = ("car", "person", "sign")
HORIZON = 36
MOST = 6
"""Most things on a scene."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what is on it."""

    picture: np.ndarray
    """uint8[96, 160, 3]."""
    boxes: np.ndarray
    """float32[n, 4]: left, top, right, bottom in pixels."""
    classes: np.ndarray
    """int64[n]."""


def scene(seed: int) -> Scene:
    """Return a scene: a road to the horizon with up to six cars, people and signs; near things hide far ones."""
    random = np.random.default_rng(seed)
    image = _road(random)
    draw = ImageDraw.Draw(image)
    boxes: list[tuple[float, ...]] = []
    classes: list[int] = []
    for foot in sorted(random.uniform(HORIZON + 6, HEIGHT - 4, random.integers(1, MOST + 1))):
        kind = int(random.choice(len(CLASSES), p=(0.5, 0.25, 0.25)))
        box = _place(kind, float(foot), random)
        if box[0] < 1 or box[2] > WIDTH - 2 or any(_overlap(box, other) > 0.15 for other in boxes):
            continue
        (_car, _person, _sign)[kind](draw, box, random)
        boxes.append(box)
        classes.append(kind)
    picture = np.asarray(image).astype(np.float32) * random.uniform(0.6, 1.1)
    picture += random.normal(0, 8, picture.shape)
    return Scene(
        np.clip(picture, 0, 255).astype(np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int64),
    )


def _road(random: np.random.Generator) -> Image.Image:
    image = Image.new(
        "RGB", (WIDTH, HEIGHT), tuple(int(each) for each in random.integers((110, 150, 190), (170, 200, 240)))
    )
    draw = ImageDraw.Draw(image)
    draw.rectangle(
        (0, HORIZON, WIDTH, HEIGHT), fill=tuple(int(each) for each in random.integers((50, 80, 40), (100, 140, 80)))
    )
    middle, gray = int(random.integers(65, 95)), int(random.integers(70, 110))
    draw.polygon([(middle - 4, HORIZON), (middle + 4, HORIZON), (WIDTH + 20, HEIGHT), (-20, HEIGHT)], fill=(gray,) * 3)
    for step in range(6):
        top = HORIZON + 2 + step * step * 2
        draw.rectangle((middle - step / 2, top, middle + step / 2, top + 2 + step), fill=(220, 220, 210))
    for _ in range(int(random.integers(3, 9))):  # houses and trees, which are nothing to detect
        left, height = int(random.integers(0, WIDTH)), int(random.integers(4, 20))
        color = tuple(int(each) for each in random.integers(40, 160, 3))
        draw.rectangle((left, HORIZON - height, left + int(random.integers(5, 18)), HORIZON), fill=color)
    return image


def _place(kind: int, foot: float, random: np.random.Generator) -> tuple[float, float, float, float]:
    """Return the box of a thing that stands at the row `foot`: the lower, the nearer and larger."""
    near = (foot - HORIZON) / (HEIGHT - HORIZON)
    size = (8 + 34 * near) * random.uniform(0.85, 1.15)
    width, height = size * ((1.0, 0.62), (0.3, 0.85), (0.38, 0.95))[kind][0], size * (0.62, 0.85, 0.95)[kind]
    left = random.uniform(0, WIDTH - width)
    return left, foot - height, left + width, foot


def _car(draw: ImageDraw.ImageDraw, box: tuple[float, ...], random: np.random.Generator) -> None:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    color = tuple(int(each) for each in random.integers(30, 230, 3))
    draw.rectangle((left, top + height * 0.4, right, bottom - height * 0.12), fill=color)
    draw.polygon([(left + width * 0.15, top + height * 0.4), (left + width * 0.28, top), (right - width * 0.28, top),
                  (right - width * 0.15, top + height * 0.4)], fill=(50, 60, 80))  # fmt: skip
    for side in (left + width * 0.08, right - width * 0.28):
        draw.rectangle((side, bottom - height * 0.25, side + width * 0.2, bottom), fill=(15, 15, 15))
        draw.rectangle((side, top + height * 0.5, side + width * 0.15, top + height * 0.62), fill=(250, 230, 150))


def _person(draw: ImageDraw.ImageDraw, box: tuple[float, ...], random: np.random.Generator) -> None:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    coat, legs = (tuple(int(each) for each in random.integers(20, 220, 3)) for _ in range(2))
    draw.ellipse((left + width * 0.25, top, right - width * 0.25, top + height * 0.2), fill=(205, 160, 130))
    draw.rectangle((left, top + height * 0.2, right, top + height * 0.6), fill=coat)
    draw.rectangle((left + width * 0.12, top + height * 0.6, left + width * 0.42, bottom), fill=legs)
    draw.rectangle((right - width * 0.42, top + height * 0.6, right - width * 0.12, bottom), fill=legs)


def _sign(draw: ImageDraw.ImageDraw, box: tuple[float, ...], random: np.random.Generator) -> None:
    left, top, right, bottom = box
    width = right - left
    draw.rectangle((left + width * 0.44, top + width, right - width * 0.44, bottom), fill=(120, 120, 120))
    if random.random() < 0.5:
        draw.ellipse((left, top, right, top + width), fill=(200, 30, 30))
        draw.ellipse(
            (left + width * 0.18, top + width * 0.18, right - width * 0.18, top + width * 0.82), fill=(240,) * 3
        )
    else:
        draw.polygon([(left, top + width), (right, top + width), ((left + right) / 2, top)], fill=(210, 40, 40))
        draw.polygon([(left + width * 0.25, top + width * 0.86), (right - width * 0.25, top + width * 0.86),
                      ((left + right) / 2, top + width * 0.34)], fill=(240, 240, 240))  # fmt: skip


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the share of the smaller box that both have in common."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / smaller
