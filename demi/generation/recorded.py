"""Recorded texts of a bundle that generates: the prompts of its export, and the tokens that FP32 chose after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demi.bundles import manifest as manifests
from demi.bundles.archives import read_arrays
from demi.bundles.bundle import Bundle
from demi.errors import BundleError
from demi.files import why_unreadable
from demi.generation.generator import Generator, Prompt
from demi.tensors import Array

FIRST, TOKENS, ENCODER = "first", "tokens", "encoder"


@dataclass(frozen=True, slots=True)
class RecordedText:
    """A prompt, and the tokens that FP32 chose after it; an end token is the last."""

    prompt: Prompt
    tokens: tuple[int, ...]

    @property
    def arrays(self) -> dict[str, Array]:
        """The text as arrays: `first` and `tokens` INT64, and `encoder/NAME` for each input of the encoder."""
        ids = {FIRST: self.prompt.first, TOKENS: self.tokens}
        feeds = self.prompt.encoder or {}
        return {name: np.array(each, np.int64) for name, each in ids.items()} | {
            f"{ENCODER}/{name}": array for name, array in feeds.items()
        }


def write_texts(draft: Path, texts: Sequence[RecordedText]) -> None:
    """Write the texts into a bundle's draft as `texts.npz`, with keys such as `000/tokens`."""
    arrays = {f"{place:03d}/{name}": array for place, text in enumerate(texts) for name, array in text.arrays.items()}
    np.savez_compressed(draft / manifests.TEXTS, allow_pickle=False, **arrays)


def read_texts(bundle: Bundle, generator: Generator) -> list[RecordedText]:
    """Return the recorded texts, none for a bundle without them. Raises BundleError for texts that its model cannot have."""
    if manifests.TEXTS not in bundle.manifest.files:
        return []
    try:
        texts = _unpack(read_arrays(bundle.path / manifests.TEXTS))
    except Exception as error:  # damaged archives make NumPy and zipfile raise almost anything
        raise _unusable(f"cannot be read: {why_unreadable(error)}", bundle) from error
    size = next(spec.shape[1] for spec in bundle.manifest.outputs if spec.name == generator.rules.logits)
    for text in texts:
        ids = (*text.prompt.first, *text.tokens)
        if (text.prompt.encoder is None) is bool(generator.memory_names):
            raise _unusable("does not fit the model: one of the two has no encoder", bundle)
        if not text.prompt.first or not text.tokens or len(ids) > generator.rules.max_length:
            raise _unusable("holds a text that the model cannot generate", bundle)
        if min(ids) < 0 or not isinstance(size, int) or max(ids) >= size:
            raise _unusable("holds a token that is not in the vocabulary", bundle)
    return texts


def _unpack(arrays: dict[str, Array]) -> list[RecordedText]:
    found: dict[int, dict[str, Array]] = {}
    for key, array in arrays.items():
        place, name = key.split("/", 1)
        found.setdefault(int(place), {})[name] = array
    return [_text(found[place]) for place in sorted(found)]


def _text(arrays: dict[str, Array]) -> RecordedText:
    first, tokens = (tuple(int(each) for each in arrays.pop(name)) for name in (FIRST, TOKENS))
    feeds = {name.removeprefix(f"{ENCODER}/"): array for name, array in arrays.items()}
    return RecordedText(Prompt(first, feeds or None, count=len(first)), tokens)


def _unusable(why: str, bundle: Bundle) -> BundleError:
    return BundleError(f"`{manifests.TEXTS}` {why}", where=str(bundle.path), hint="export the model again")
