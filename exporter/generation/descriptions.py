"""The description of a generator in its bundle: what it takes, and how it generates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demi.errors import SourceError
from demi.exporter.generation.rules import NO_LIMIT, Rules
from demi.exporter.processing.found import Found
from demi.exporter.processing.media import log_mel_description
from demi.exporter.processing.tokenizer import has_tokenizer, load_tokenizer, plain_json
from demi.processing.description import (
    CachePair,
    DecoderGeneration,
    EncoderDecoderGeneration,
    Generation,
    LogMelInput,
    Processing,
    TextInput,
)

CONTINUING, TEXTS, SPEECH = "text-generation", "text2text-generation", "automatic-speech-recognition"
IDS, LOGITS = "input_ids", "logits"
"""The decoder's input for ids, and its output with a number for each token of the vocabulary."""
TASKS = frozenset({CONTINUING, TEXTS, SPEECH})
"""Tasks whose bundles generate."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The decoder's cache, and its memory of the encoder; empty without one."""

    cache: tuple[CachePair, ...]
    memory: tuple[CachePair, ...] = ()


def check_folder(path: Path) -> None:
    """Raise SourceError for a folder without a tokenizer, before anything slow."""
    if not has_tokenizer(path):
        raise SourceError(
            "the folder holds no tokenizer, without which no text can be generated",
            where=str(path),
            hint="save it next to the model with tokenizer.save_pretrained",
        )


def describe_generator(path: Path, task: str, rules: Rules, pairs: Pairs) -> Found:
    """Return the description of a folder's generator, with its tokenizer.

    Raises SourceError for a tokenizer or a feature extractor that is missing or not known.
    """
    tokenizer = load_tokenizer(path)
    raw: TextInput | LogMelInput
    if task == SPEECH:
        raw = log_mel_description(path)
    elif task == CONTINUING:
        raw = TextInput(max_length=rules.max_length - 1, mask=None, truncation_side="left")
    else:
        longest = min(int(tokenizer.model_max_length), rules.encoder_length or NO_LIMIT)
        raw = TextInput(max_length=longest, mask=None, truncation_side=tokenizer.truncation_side)
    return Found(
        Processing(raw, task, generation=_generation(task, rules, pairs)),
        plain_json(tokenizer.backend_tokenizer.to_str()),
    )


def _generation(task: str, rules: Rules, pairs: Pairs) -> Generation:
    tokens = (rules.ends, rules.suppressed, rules.suppressed_first)
    if task == CONTINUING:
        return DecoderGeneration(pairs.cache, rules.max_length, IDS, LOGITS, rules.start, *tokens)
    return EncoderDecoderGeneration(
        pairs.cache, rules.max_length, pairs.memory, rules.start, IDS, LOGITS, *tokens, rules.languages
    )
