"""The image processor or feature extractor of a source, from transformers' `preprocessor_config.json`.

The description is proven: on probes, Demi's pixels or samples must equal transformers' bit for bit.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from demi.errors import SourceError, missing_package
from demi.processing.description import AudioInput, ImageInput, LogMelInput, Resize
from demi.processing.images import ImagePreprocessor
from demi.processing.log_mel import log_mel
from demi.processing.prepared import RawRows
from demi.processing.sounds import unit_variance
from demi.tensors import Array, DType, TensorSpec

CONFIG = "preprocessor_config.json"

LOG_MEL_TOLERANCE = 1e-4
"""Largest difference of a log-mel feature: transformers computes them in FP32 with PyTorch, Demi in FP64 with NumPy."""

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of filters, by which transformers names them."""

_IMAGE_KEYS = frozenset(
    {
        *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
        *("do_normalize", "image_mean", "image_std", "do_convert_rgb", "image_processor_type", "data_format"),
        *("default_to_square", "processor_class", "input_data_format", "return_tensors", "disable_grouping", "device"),
        *("feature_extractor_type", "crop_pct", "do_flip_channel_order", "do_pad", "pad_size"),
    }
)


def image_description(path: Path, mode: str = "RGB") -> ImageInput:
    """Return the steps of a folder's image processor, or of the one in a file.

    Raises SourceError for one that does anything else, PackageError without transformers or Pillow.
    """
    processor = _load(path, "AutoImageProcessor")
    steps = processor.to_dict()
    unknown = [key for key, value in steps.items() if key not in _IMAGE_KEYS and value not in (None, False)]
    if unknown:
        raise _unknown_steps(path, type(processor).__name__, f"it has `{unknown[0]}`")
    description = ImageInput(
        mode="L" if mode == "L" else "RGB",
        resize=_resize(steps, path) if steps.get("do_resize") else None,
        crop=_sides(steps.get("crop_size"), path) if steps.get("do_center_crop") else None,
        scale=steps["rescale_factor"] if steps.get("do_rescale") else None,
        mean=_channels(steps["image_mean"], mode) if steps.get("do_normalize") else None,
        std=_channels(steps["image_std"], mode) if steps.get("do_normalize") else None,
    )
    _prove_image(description, processor, path)
    return description


def audio_description(path: Path) -> AudioInput:
    """Return the steps of a folder's feature extractor for raw sound, or of the one in a file."""
    extractor = _load(path, "AutoFeatureExtractor")
    steps = extractor.to_dict()
    if getattr(extractor, "model_input_names", [""])[0] != "input_values" or steps.get("feature_size", 1) != 1:
        raise _unknown_steps(path, type(extractor).__name__, "its model does not take the samples of sound")
    description = AudioInput(
        mask="attention_mask" if steps.get("return_attention_mask") else None,
        rate=steps["sampling_rate"],
        normalize=bool(steps.get("do_normalize")),
        pad_value=steps.get("padding_value", 0.0),
    )
    _prove_audio(description, extractor, path)
    return description


def log_mel_description(path: Path) -> LogMelInput:
    """Return the steps of a folder's feature extractor for log-mel features, Whisper's."""
    extractor = _load(path, "AutoFeatureExtractor")
    steps, kind = extractor.to_dict(), type(extractor).__name__
    if kind != "WhisperFeatureExtractor":
        raise _unknown_steps(path, kind, "only Whisper's features of speech are known")
    if steps.get("dither") or steps.get("do_normalize") or steps.get("padding_value"):
        raise _unknown_steps(path, kind, "it adds noise, normalizes samples, or pads with another value than 0")
    description = LogMelInput(
        rate=steps["sampling_rate"],
        bands=steps["feature_size"],
        window=steps["n_fft"],
        hop=steps["hop_length"],
        seconds=steps["chunk_length"],
    )
    _prove_log_mel(description, extractor, path)
    return description


def has_preprocessor(folder: Path) -> bool:
    """Return whether a folder holds the description of an image processor or a feature extractor."""
    return (folder / CONFIG).is_file()


def _load(path: Path, kind: str) -> Any:
    """Load transformers' class for a file or folder; code in it is not run, and nothing is downloaded."""
    try:
        import transformers
    except ImportError as error:
        raise missing_package("transformers", "examples") from error
    folder = path if path.is_dir() else path.parent
    if not has_preprocessor(folder) or (not path.is_dir() and path.name != CONFIG):
        raise SourceError(f"there is no {CONFIG}", where=str(path), hint="name the file, or its folder")
    try:
        return getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SourceError(f"transformers cannot load the processor: {first}", where=str(path)) from error


def _resize(steps: dict[str, Any], path: Path) -> Resize:
    size, number = steps["size"], int(steps.get("resample", 2))
    if number not in FILTERS:
        raise SourceError(
            f"the image processor resizes with filter {number}, which Pillow does not have", where=str(path)
        )
    name: Any = FILTERS[number]
    if set(size) == {"shortest_edge"}:
        return Resize(name, shortest_edge=size["shortest_edge"])
    height, width = _sides(size, path)
    return Resize(name, height=height, width=width)


def _sides(size: Any, path: Path) -> tuple[int, int]:
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    raise SourceError(
        f"the image processor has the size {size}, which is not read",
        where=str(path),
        hint="give its size as height and width, or resize to shortest_edge",
    )


def _channels(values: Any, mode: str) -> tuple[float, ...]:
    found = tuple(float(value) for value in (values if isinstance(values, list | tuple) else [values] * len(mode)))
    return found[: len(mode)]


def _prove_image(description: ImageInput, processor: Any, path: Path) -> None:
    """Raise SourceError unless images of several sizes become the same pixels as in transformers, bit for bit."""
    from PIL import Image

    ours = ImagePreprocessor(description, {description.pixels: TensorSpec("pixels", DType.FP32, ("b", "c", "h", "w"))})
    random = np.random.default_rng(0)
    for height, width in ((97, 61), (40, 333), (256, 256)):
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).convert(description.mode)
        file = io.BytesIO()
        picture.save(file, "PNG")
        try:
            theirs = np.asarray(processor(images=picture, return_tensors="np")[description.pixels], np.float32)
        except Exception as error:
            raise _unknown_steps(path, type(processor).__name__, f"it fails on an image: {error}") from error
        (row,) = ours.read(RawRows((file.getvalue(),)))
        if not _same(theirs[0], row.values):
            raise _unknown_steps(path, type(processor).__name__, "its pixels differ from what its settings say")


def _prove_audio(description: AudioInput, extractor: Any, path: Path) -> None:
    sound = np.random.default_rng(0).normal(0.1, 0.3, description.rate).astype(np.float32)
    theirs = extractor(sound, sampling_rate=description.rate, return_tensors="np")["input_values"][0]
    if not _same(theirs, unit_variance(sound) if description.normalize else sound):
        raise _unknown_steps(path, type(extractor).__name__, "its values differ from what its settings say")


def _prove_log_mel(description: LogMelInput, extractor: Any, path: Path) -> None:
    sound = np.random.default_rng(0).normal(0.0, 0.3, description.rate).astype(np.float32)
    theirs = extractor(sound, sampling_rate=description.rate, return_tensors="np")["input_features"][0]
    ours = log_mel(sound, description)
    if theirs.shape != ours.shape or np.abs(theirs - ours).max() > LOG_MEL_TOLERANCE:
        raise _unknown_steps(path, type(extractor).__name__, "its values differ from what its settings say")


def _same(theirs: Array, ours: Array) -> bool:
    return theirs.shape == ours.shape and theirs.tobytes() == np.ascontiguousarray(ours).tobytes()


def _unknown_steps(path: Path, name: str, why: str) -> SourceError:
    return SourceError(
        f"{name} does more than resize, crop, scale and normalize: {why}",
        where=str(path),
        hint="export without --task to serve tensors, and preprocess in the client",
    )
