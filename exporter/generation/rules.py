"""How a transformers model generates, as the data that a bundle holds: from its configuration and generation_config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demi.errors import SourceError

NO_LIMIT = 512
"""Most tokens of a decoder whose configuration sets no limit, such as T5's with its relative positions."""

ENGLISH = "<|en|>"
"""The language of speech where generation_config.json sets none."""

OTHER_SEARCHES: dict[str, Sequence[object]] = {
    "do_sample": (None, False),
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_eos_token_id": (None,),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
}
"""Settings of generation_config.json with which transformers chooses other tokens, and the values that change nothing."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The tokens and limits of a model's generation."""

    max_length: int
    ends: tuple[int, ...]
    start: tuple[int, ...]
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    encoder_length: int | None = None
    """Most tokens that the encoder takes; None without a limit."""
    notes: tuple[str, ...] = ()


def rules_of(model: Any, path: Path) -> Rules:
    """Return the rules of a transformers model. Raises SourceError for one that does not say how an encoder's answer begins."""
    config = model.config.get_text_config(decoder=True)
    settings = model.generation_config
    limit = getattr(config, "max_target_positions", None) or getattr(config, "max_position_embeddings", None)
    return Rules(
        max_length=int(limit or NO_LIMIT),
        ends=_ids(_first(settings.eos_token_id, config.eos_token_id)),
        start=_start(model, settings, config, path),
        suppressed=_ids(getattr(settings, "suppress_tokens", None)),
        suppressed_first=_ids(getattr(settings, "begin_suppress_tokens", None)),
        encoder_length=getattr(model.config, "max_position_embeddings", None),
        notes=tuple(
            f"generation_config.json sets {name} to {getattr(settings, name)!r}, but Demi takes the most probable token"
            for name, plain in OTHER_SEARCHES.items()
            if getattr(settings, name, None) not in plain
        ),
    )


def _start(model: Any, settings: Any, config: Any, path: Path) -> tuple[int, ...]:
    """Return the decoder's first ids; without an encoder, those that an empty text stands for."""
    if not model.config.is_encoder_decoder:
        return _ids(_first(settings.bos_token_id, config.bos_token_id))
    first = _first(
        settings.decoder_start_token_id, getattr(config, "decoder_start_token_id", None), settings.bos_token_id
    )
    if first is None:
        raise SourceError(
            "the model does not say with which token its decoder starts",
            where=str(path),
            hint="set decoder_start_token_id in generation_config.json",
        )
    return (*_ids(first), *_ids(settings.forced_bos_token_id), *_speech_start(settings))


def _speech_start(settings: Any) -> tuple[int, ...]:
    """Return the ids with which Whisper's decoder starts after the first: language, task, and that it writes no times."""
    languages = getattr(settings, "lang_to_id", None) or {}
    tasks = getattr(settings, "task_to_id", None) or {}
    language = getattr(settings, "language", None) or ENGLISH
    found = [languages.get(language, languages.get(f"<|{language}|>"))]
    found.append(tasks.get(getattr(settings, "task", None) or "transcribe"))
    found.append(getattr(settings, "no_timestamps_token_id", None))
    return tuple(int(each) for each in found if each is not None)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _ids(value: Any) -> tuple[int, ...]:
    """Return token ids, which transformers writes as a number, a list or nothing; negative ones stand for none."""
    listed = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    return tuple(int(each) for each in listed if int(each) >= 0)
