"""Images to pixels, with Pillow; the only module that imports it.

An image is untrusted: its size is read from its header and checked before a pixel is unpacked.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from demi.errors import InputError, missing_package
from demi.processing.description import ImageInput, Resize
from demi.processing.prepared import RawRows, Row
from demi.tensors import Array, Feeds, TensorSpec

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Formats that are read; of an animation, the first frame."""

MOST_PIXELS = 40_000_000
"""Largest image: 40 megapixels take 120 MB as RGB."""

LONGEST_SIDE = 30_000
"""Longest side in pixels: an image that is resized by its shorter side could otherwise become enormous."""

MOST_RESIZED = 20_000_000
"""Most pixels after resizing."""


class ImagePreprocessor:
    """Makes `pixel_values` of images. Thread-safe. Raises PackageError without Pillow."""

    def __init__(self, description: ImageInput, specs: Mapping[str, TensorSpec]) -> None:
        self.description = description
        self.spec = specs[description.pixels]
        _import_pillow()

    @property
    def pads(self) -> bool:
        """Return False: images of different sizes do not share a run."""
        return False

    def read(self, raw: RawRows, *, with_tokens: bool = False) -> list[Row]:
        """Return the pixels of images, given as the bytes of their files. Raises InputError, naming the image."""
        return [Row(self._pixels(_as_bytes(row), index)) for index, row in enumerate(raw.rows)]

    def stack(self, rows: Sequence[Row]) -> Feeds:
        """Return the pixels [rows, channels, height, width], or with the channels last."""
        pixels = np.stack([row.values for row in rows])
        return {self.description.pixels: pixels.astype(self.spec.dtype.numpy, copy=False)}

    def _pixels(self, data: bytes, index: int) -> Array:
        steps = self.description
        image = open_image(data, steps.mode, f"image {index}")
        if steps.resize:
            image = _resize(image, steps.resize, f"image {index}")
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if steps.crop:
            pixels = crop_center(pixels, *steps.crop)
        pixels = normalize(pixels, steps.scale, steps.mean, steps.std)
        return pixels if steps.channels == "first" else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))


def open_image(data: bytes, mode: str, name: str) -> Any:
    """Return the upright image in a file, as a Pillow image in `mode`. Raises InputError for anything else."""
    image_module, operations = _import_pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes that are checked below, and damaged metadata
            with image_module.open(io.BytesIO(data), formats=FORMATS) as found:
                width, height = found.size
                _check_size(width, height, name)
                found.load()
                upright = operations.exif_transpose(found)
                return upright.convert(mode)
    except InputError:
        raise
    except image_module.DecompressionBombError as error:
        raise InputError(
            f"{name} has too many pixels; at most {MOST_PIXELS:,} are read", hint="send it smaller"
        ) from error
    except image_module.UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image in a format that is read: {', '.join(FORMATS)}", hint="is the file complete?"
        ) from error
    except Exception as error:  # Pillow raises almost anything for damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} cannot be read: {reason}", hint="is the file complete?") from error


def crop_center(pixels: Array, height: int, width: int) -> Array:
    """Return the center of an image [channels, rows, columns]; one that is smaller is padded with zeros first."""
    channels, rows, columns = pixels.shape
    tall, wide = max(height, rows), max(width, columns)
    if (tall, wide) != (rows, columns):
        # The larger half of the padding goes to the top and the left, as in transformers.
        top, left = -(-(tall - rows) // 2), -(-(wide - columns) // 2)
        padded = np.zeros((channels, tall, wide), pixels.dtype)
        padded[:, top : top + rows, left : left + columns] = pixels
        down, right = (rows - height) // 2 + top, (columns - width) // 2 + left
        return padded[:, max(0, down) : min(tall, down + height), max(0, right) : min(wide, right + width)]
    down, right = (rows - height) // 2, (columns - width) // 2
    return pixels[:, down : down + height, right : right + width]


def normalize(pixels: Array, scale: float | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> Array:
    """Return `(pixels * scale - mean) / std` in float32, rounded after each step as transformers rounds.

    The product is computed in float64, difference and quotient in float32.
    """
    if scale is not None:
        pixels = (pixels.astype(np.float64) * scale).astype(np.float32)
    pixels = pixels.astype(np.float32, copy=False)
    if mean is not None and std is not None:
        shape = (-1, 1, 1)
        pixels = (pixels - np.array(mean, np.float32).reshape(shape)) / np.array(std, np.float32).reshape(shape)
    return pixels


def _resize(image: Any, resize: Resize, name: str) -> Any:
    from PIL.Image import Resampling

    width, height = image.size
    if resize.shortest_edge is not None:
        width, height = sides_for_shortest(width, height, resize.shortest_edge)
    else:
        width, height = resize.width or 1, resize.height or 1
    if width * height > MOST_RESIZED:
        raise InputError(f"{name} would have {width} x {height} pixels after resizing: its sides differ too much")
    return image.resize((width, height), resample=Resampling[resize.filter.upper()])


def sides_for_shortest(width: int, height: int, shortest: int) -> tuple[int, int]:
    """Return width and height of an image whose shorter side becomes `shortest`; the other is rounded down."""
    short, long = sorted((width, height))
    other = int(shortest * long / short)
    return (shortest, other) if width <= height else (other, shortest)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise InputError(
            f"{name} has {width} x {height} pixels; at most {MOST_PIXELS:,}, and {LONGEST_SIDE:,} a side, are read",
            hint="send it smaller",
        )


def _as_bytes(row: object) -> bytes:
    assert isinstance(row, bytes)  # the reader of requests has seen to it
    return row


def _import_pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise missing_package("pillow", "processing") from error
    return Image, ImageOps
