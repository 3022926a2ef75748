"""Pictures for the examples: the description that `demi export --image-processor` reads, and pixels as it makes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SCALE = 1 / 255


def write_processor(folder: Path, height: int = 0, width: int = 0) -> None:
    """Write `preprocessor_config.json`: pixels from 0 to 1, of pictures resized to `height` and `width`, if given."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": bool(height),
        "size": {"height": height or 1, "width": width or 1},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": SCALE,
        "do_normalize": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def pixels(pictures: np.ndarray) -> np.ndarray:
    """Return pictures, uint8[n, height, width, 3], as the processor does: float32[n, 3, height, width] from 0 to 1."""
    scaled = (pictures.astype(np.float64) * SCALE).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, 1))


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture, uint8[height, width] or uint8[height, width, 3], as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
