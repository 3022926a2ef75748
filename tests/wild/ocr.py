"""RapidOCR's three models: detection of text, its orientation, and its recognition.

Inputs are made as rapidocr-onnxruntime makes them, with Pillow's interpolation for OpenCV's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from PIL import Image
from scipy import ndimage

from demi.tensors import Array, Feeds
from tests.wild.fetch import located
from tests.wild.pictures import page_line, picture, printed, printed_page, resized
from tests.wild.task import Run

PACKAGE = "rapidocr-onnxruntime"
RECOGNIZER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"


def _normalized(image: Array) -> Array:
    """Convert uint8[h, w, 3] in RGB to float32[3, h, w] in BGR, from -1 to 1."""
    planes = image[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)
    return (planes / 255 - np.float32(0.5)) / np.float32(0.5)


def detector_input(image: Image.Image, shortest: int = 736) -> Feeds:
    """Return the whole picture, scaled to at least 736 on the short side and to multiples of 32."""
    ratio = max(1.0, shortest / min(image.size))
    width, height = (max(32, round(int(side * ratio) / 32) * 32) for side in image.size)
    return {"x": _normalized(resized(image, width, height))[None]}


def line_input(images: Sequence[Image.Image], height: int, least_width: int, most_width: int = 0) -> Feeds:
    """Return lines of text as a batch, padded on the right to the width of the longest."""
    ratios = [image.width / image.height for image in images]
    width = most_width or int(height * max(least_width / height, *ratios))
    batch = np.zeros((len(images), 3, height, width), np.float32)
    for row, image, ratio in zip(batch, images, ratios, strict=True):
        across = min(width, math.ceil(height * ratio))
        row[:, :, :across] = _normalized(resized(image, across, height))
    return {"x": batch}


def recognizer_input(*images: Image.Image) -> Feeds:
    """Return lines for the recognizer: 48 pixels high, and as wide as they need, at least 320."""
    return line_input(images, 48, 320)


def classifier_input(*images: Image.Image) -> Feeds:
    """Return lines for the classifier: 48 by 192, with longer lines squeezed."""
    return line_input(images, 48, 192, 192)


def _upside_down(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_180)


def detector_samples(_: Run) -> list[Feeds]:
    """Return half of a photographed page, and a picture with little text: squares, since others grow to a megapixel."""
    page, coffee = picture("page.png"), picture("coffee.png")
    return [detector_input(page.crop((0, 0, 192, 191))), detector_input(coffee.crop((100, 0, 500, 400)))]


PAGE = (
    *("Invoice 2026-1187", "Half precision, 24 hours", "Shipping and handling", "Total: 1,249.50 EUR"),
    *("Payable within 14 days", "IBAN DE02 1203 0000 0000", "Thank you for your order!", "www.example.org"),
)


def detector_heldout(_: Run) -> list[Feeds]:
    """Return the page's other half, a printed page, and a rocket with letters on it."""
    page, rocket = picture("page.png"), picture("rocket.jpg")
    halves = [page.crop((192, 0, 384, 191)), printed_page(PAGE), rocket.crop((120, 0, 547, 427))]
    return [detector_input(image) for image in halves]


SAMPLE_LINES = ("Dear Sir or Madam,", "Room 204, 3rd floor", "EXIT", "9 789027 725332")
HELD_OUT_LINES = ("The quick brown fox", "https://example.org/path?q=1", "Total: 1,249.50 EUR", "No. 7", "OPEN 9-17")


def recognizer_samples(_: Run) -> list[Feeds]:
    """Return lines of a photographed page, and printed ones."""
    return [
        recognizer_input(page_line(0), page_line(1)),
        recognizer_input(page_line(2)),
        recognizer_input(page_line(3)),
        recognizer_input(*(printed(line) for line in SAMPLE_LINES)),
    ]


def recognizer_heldout(_: Run) -> list[Feeds]:
    """Return other lines of the same page, and other printed ones."""
    return [
        recognizer_input(page_line(4)),
        recognizer_input(page_line(5), page_line(6)),
        recognizer_input(*(printed(line) for line in HELD_OUT_LINES)),
    ]


def classifier_samples(_: Run) -> list[Feeds]:
    """Return lines in both orientations."""
    return [
        classifier_input(page_line(0), _upside_down(page_line(1)), page_line(2)),
        classifier_input(page_line(3), _upside_down(page_line(0))),
        classifier_input(*(_upside_down(printed(line)) for line in SAMPLE_LINES)),
        classifier_input(*(printed(line) for line in SAMPLE_LINES)),
    ]


def classifier_heldout(_: Run) -> list[Feeds]:
    """Return other lines in both orientations."""
    return [
        classifier_input(page_line(4), _upside_down(page_line(4)), page_line(5), _upside_down(page_line(6))),
        classifier_input(*(printed(line) for line in HELD_OUT_LINES)),
        classifier_input(*(_upside_down(printed(line)) for line in HELD_OUT_LINES)),
    ]


def boxes(run: Run) -> list[list[tuple[int, int, int, int]]]:
    """Return the text boxes of the held-out pictures: regions above 0.3 with a mean of at least 0.5."""
    return [_boxes(next(iter(run(feeds).values()))[0, 0]) for feeds in detector_heldout(run)]


def _boxes(scores: Array) -> list[tuple[int, int, int, int]]:
    """Return left, top, right and bottom of every region."""
    labels, _ = ndimage.label(ndimage.binary_dilation(scores > 0.3, np.ones((2, 2))))
    found = []
    for rows, columns in ndimage.find_objects(labels):
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        if min(high, wide) >= 3 and scores[rows, columns].mean() >= 0.5:
            found.append((columns.start, rows.start, columns.stop, rows.stop))
    return found


def ways_up(run: Run) -> list[str]:
    """Return the held-out lines that are upside down: those with a second score above 0.9."""
    scores = np.concatenate([next(iter(run(feeds).values())) for feeds in classifier_heldout(run)])
    return ["turned" if row.argmax() == 1 and row[1] > 0.9 else "left" for row in scores]


def texts(run: Run) -> list[str]:
    """Return the texts of the held-out lines: the likeliest character of each column, without repeats and blanks."""
    alphabet = _alphabet()
    found = []
    for feeds in recognizer_heldout(run):
        for columns in next(iter(run(feeds).values())).argmax(axis=2):
            kept = (columns != 0) & np.concatenate([[True], columns[1:] != columns[:-1]])
            found.append("".join(alphabet[index] for index in columns[kept]))
    return found


def _alphabet() -> list[str]:
    """Return the recognizer's characters, stored in its file, between a blank and a space."""
    model = onnx.load(located(PACKAGE, RECOGNIZER))
    held = {row.key: row.value for row in model.metadata_props}
    return ["", *held["character"].splitlines(), " "]


def moved(expected: list[list[tuple[int, int, int, int]]], got: list[list[tuple[int, int, int, int]]]) -> str:
    """Describe differing boxes: each picture must have as many, with edges moved by at most two pixels."""
    for index, (theirs, ours) in enumerate(zip(expected, got, strict=True)):
        if len(theirs) != len(ours):
            return f"picture {index} has {len(ours)} boxes in place of {len(theirs)}"
        off = np.abs(np.array(theirs) - np.array(ours)).max(initial=0)
        if off > 2:
            return f"an edge in picture {index} is off by {off} pixels"
    return ""
