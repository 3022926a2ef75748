"""The tensors that the examples train on are those that the served model computes from files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from demi.exporter.processing.media import audio_description, image_description
from demi.processing.images import ImagePreprocessor
from demi.processing.prepared import RawRows
from demi.processing.sounds import unit_variance as served_variance
from demi.tensors import DType, TensorSpec
from examples.domains.pictures import pixels, write_processor
from examples.domains.speech import RATE, unit_variance, write_extractor
from examples.domains.vision import SIDE, enlarged


def served(folder, picture: np.ndarray) -> np.ndarray:
    """Return the pixels that the served model computes from a picture's file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    description = image_description(folder)
    spec = TensorSpec("pixel_values", DType.FP32, ("batch", 3, "height", "width"))
    (row,) = ImagePreprocessor(description, {"pixel_values": spec}).read(RawRows((file.getvalue(),)))
    return row.values


def test_pixels(tmp_path):
    """Bit for bit, without resizing."""
    write_processor(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)

    assert pixels(picture[None])[0].tobytes() == served(tmp_path, picture).tobytes()


def test_enlarged_digits(tmp_path):
    """Bit for bit, from gray pictures that are enlarged."""
    write_processor(tmp_path, SIDE, SIDE)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)

    assert pixels(enlarged(picture)[None])[0].tobytes() == served(tmp_path, picture).tobytes()


def test_sounds(tmp_path):
    """The rate and the scale."""
    write_extractor(tmp_path)
    sound = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    description = audio_description(tmp_path)

    assert (RATE, True) == (description.rate, description.normalize)
    assert np.allclose(served_variance(sound), unit_variance(sound), atol=1e-6)
