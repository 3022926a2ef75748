"""Rules by which a transformers model generates, as data of a bundle: from its configuration and generation_config.json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demi.errors import SourceError
from demi.processing.description import Languages

NO_LIMIT = 512
"""Most tokens of a decoder whose configuration sets no limit, such as T5's with its relative positions."""

ENGLISH = "<|en|>"
"""The language of speech where generation_config.json sets none."""

CODE = re.compile("[a-z][a-z-]{1,15}")
"""Codes of languages that a bundle can hold."""

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
    languages: Languages | None = None
    """The languages of a model of speech that has several."""
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
        languages=_languages(settings, place=len(_before_language(settings, config))),
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
    before = _before_language(settings, config)
    if not before:
        raise SourceError(
            "the model does not say with which token its decoder starts",
            where=str(path),
            hint="set decoder_start_token_id in generation_config.json",
        )
    return (*before, *_speech_start(settings))


def _before_language(settings: Any, config: Any) -> tuple[int, ...]:
    """Return the decoder's first ids up to that of a language; empty if nothing says which."""
    first = _first(
        settings.decoder_start_token_id, getattr(config, "decoder_start_token_id", None), settings.bos_token_id
    )
    return () if first is None else (*_ids(first), *_ids(settings.forced_bos_token_id))


def _languages(settings: Any, place: int) -> Languages | None:
    """Return the languages of a multilingual Whisper: detected for each sound, unless generation_config.json sets one."""
    known = getattr(settings, "lang_to_id", None) or {}
    codes = {code.strip("<|>").lower(): int(token) for code, token in known.items()}
    tokens = {code: token for code, token in codes.items() if CODE.fullmatch(code)}
    return Languages(tokens, place, detected=_set_language(settings) is None) if tokens else None


def _set_language(settings: Any) -> str | None:
    """Return the key of `lang_to_id` for the language that generation_config.json sets, by name, code or token."""
    known, language = (
        getattr(settings, "lang_to_id", None) or {},
        str(getattr(settings, "language", None) or "").lower(),
    )
    if not language or not known:
        return None
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    written = (language, f"<|{language}|>", f"<|{TO_LANGUAGE_CODE.get(language)}|>")
    return next((each for each in written if each in known), None)


def _speech_start(settings: Any) -> tuple[int, ...]:
    """Return the ids with which Whisper's decoder starts after the first: language, task, and that it writes no times."""
    languages = getattr(settings, "lang_to_id", None) or {}
    tasks = getattr(settings, "task_to_id", None) or {}
    language = _set_language(settings) or (ENGLISH if ENGLISH in languages else next(iter(languages), None))
    found = [languages.get(language)]
    found.append(tasks.get(getattr(settings, "task", None) or "transcribe"))
    found.append(getattr(settings, "no_timestamps_token_id", None))
    return tuple(int(each) for each in found if each is not None)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _ids(value: Any) -> tuple[int, ...]:
    """Return token ids, which transformers writes as a number, a list or nothing; negative ones stand for none."""
    listed = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    return tuple(int(each) for each in listed if int(each) >= 0)
