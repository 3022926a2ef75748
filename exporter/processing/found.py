"""The options for raw inputs, and what was found for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from demi.processing.description import Processing


@dataclass(frozen=True, slots=True)
class ProcessingOptions:
    """The user's options for raw inputs and answers; a transformers folder with a task has all of it itself."""

    tokenizer: Path | None = None
    """`tokenizer.json`, or a folder with it; from `--tokenizer`."""
    image_processor: Path | None = None
    """`preprocessor_config.json`, or a folder with it; from `--image-processor`."""
    feature_extractor: Path | None = None
    """`preprocessor_config.json` for sound, or a folder with it; from `--feature-extractor`."""
    labels: Path | None = None
    """The names of the classes: one a line, or JSON; from `--labels`."""
    max_tokens: int | None = None
    pooling: Literal["mean", "cls", "last", "max"] | None = None
    normalize: bool = False

    @property
    def given(self) -> bool:
        """Return whether any was given."""
        return self != ProcessingOptions()


@dataclass(frozen=True, slots=True)
class Found:
    """The description of a source's processing, and its tokenizer as JSON text; empty for images and sound."""

    description: Processing
    tokenizer: str = ""
