"""scikit-image's pictures, and pages of text, as inputs of detectors and readers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demi.tensors import Array
from tests.wild.fetch import located

PACKAGE = "scikit-image"


@cache
def picture(name: str) -> Image.Image:
    """Return one of scikit-image's pictures, in colour."""
    return Image.open(located(PACKAGE, f"skimage/data/{name}")).convert("RGB")


def resized(image: Image.Image, width: int, height: int) -> Array:
    """Return uint8[height, width, 3] in RGB, resized by bilinear interpolation."""
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


PAGE_LINES = (
    (2, 8, 215, 36),
    (2, 48, 382, 67),
    (2, 66, 382, 84),
    (2, 82, 382, 101),
    (2, 97, 382, 118),
    (2, 114, 178, 134),
    (18, 167, 250, 189),
)
"""The lines of page.png, as left, top, right, bottom."""


@cache
def page_line(index: int) -> Image.Image:
    """Return a line of page.png, a photographed page, as a detector would crop it."""
    return picture("page.png").crop(PAGE_LINES[index])


@cache
def printed(text: str, size: int = 24) -> Image.Image:
    """Return a line as printed and scanned: DejaVu Sans on paper that is not quite white, slightly rotated."""
    font = ImageFont.truetype(str(_font()), size)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    image = Image.new("RGB", (right - left + 12, bottom - top + 12), (236, 233, 224))
    ImageDraw.Draw(image).text((6 - left, 6 - top), text, font=font, fill=(38, 36, 42))
    turned = image.rotate(0.4, Image.Resampling.BICUBIC, fillcolor=(236, 233, 224))
    noise = np.random.default_rng(len(text)).normal(0, 6, (*turned.size[::-1], 1))
    return Image.fromarray(np.clip(np.asarray(turned) + noise, 0, 255).astype(np.uint8))


def _font() -> Path:
    """Return the font in matplotlib's package."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def printed_page(lines: tuple[str, ...]) -> Image.Image:
    """Return a page of printed lines."""
    images = [printed(line, 20) for line in lines]
    page = Image.new("RGB", (480, 40 + 44 * len(images)), (236, 233, 224))
    for index, image in enumerate(images):
        page.paste(image, (24 + 10 * (index % 3), 24 + 44 * index))
    return page
