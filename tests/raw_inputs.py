"""Tiny bundles that take texts, images and sounds, and such files made in memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from demi.bundles.manifest import BatchProof, BatchSpec, PadSpec
from demi.processing.description import (
    AudioInput,
    ClassAnswer,
    EmbeddingAnswer,
    ImageInput,
    Processing,
    Resize,
    ScoreAnswer,
    TextInput,
    TokenAnswer,
    encode,
)
from demi.tensors import Array
from tests.server.bundles import write_bundle

WORDS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "cat": 5, "sat": 6, "down": 7, "Paris": 8}

EMBED = """embed (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask) => (float[batch, tokens, 2] vectors)
<float[9, 2] table = {9.0, 9.0, 1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 3.0, 4.0, 6.0, 8.0, -1.0, 2.0, 2.0, -1.0, 5.0, 12.0}>
{ vectors = Gather(table, input_ids) }"""
"""A vector for each token; the padding token has one too, so that a pooling which reads it is wrong."""

SCORE = """score (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask, int64[batch, tokens] token_type_ids)
=> (float[batch, 1] logits)
<int64[1] last = {1}>
{ second = Mul(input_ids, token_type_ids)
  total = ReduceSum<keepdims = 1>(second, last)
  logits = Cast<to = 1>(total) }"""
"""The sum of the ids of the second text: [SEP] is 2."""

SENTIMENT = """sentiment (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask) => (float[batch, 2] logits)
<int64[1] last = {1}, float[1, 2] signs = {1.0, -1.0}, float[1] middle = {13.0}>
{ seen = Mul(input_ids, attention_mask)
  total = ReduceSum<keepdims = 1>(seen, last)
  number = Cast<to = 1>(total)
  shifted = Sub(number, middle)
  logits = Mul(shifted, signs) }"""
"""Positive for large ids."""

TAG = """tag (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask) => (float[batch, tokens, 2] logits)
<int64[1] edge = {8}, int64[1] last = {2}, float[2] signs = {-4.0, 4.0}, float[1] half = {0.5}>
{ place = Equal(input_ids, edge)
  number = Cast<to = 1>(place)
  shifted = Sub(number, half)
  wide = Unsqueeze(shifted, last)
  logits = Mul(wide, signs) }"""
"""The second label for token 8, Paris."""

COLOR = """color (float[batch, 3, 4, 4] pixel_values) => (float[batch, 3] logits)
<int64[2] sides = {2, 3}>
{ logits = ReduceMean<keepdims = 0>(pixel_values, sides) }"""
"""The mean of each channel."""

LOUD = """loud (float[batch, samples] input_values) => (float[batch, 2] logits)
<int64[1] last = {1}, float[1, 2] signs = {1.0, -1.0}, float[1] middle = {0.25}>
{ size = Abs(input_values)
  mean = ReduceMean<keepdims = 1>(size, last)
  shifted = Sub(mean, middle)
  logits = Mul(shifted, signs) }"""
"""Positive for loud sounds."""

TEXT = TextInput(max_length=8)
IMAGE = ImageInput(resize=Resize("bilinear", height=4, width=4))
AUDIO = AudioInput(rate=8000, normalize=False, max_seconds=2.0)

EMBEDDING = Processing(TEXT, "feature-extraction", EmbeddingAnswer("vectors", "mean", True))
SCORING = Processing(
    TextInput(max_length=8, types="token_type_ids", pair=True), "text-pair-scoring", ScoreAnswer("logits", "none")
)
SENTIMENTS = Processing(TEXT, "text-classification", ClassAnswer("logits", ("good", "bad")))
TAGGING = Processing(TEXT, "token-classification", TokenAnswer("logits", ("O", "place")))
COLORS = Processing(IMAGE, "image-classification", ClassAnswer("logits", ("red", "green", "blue")))
LOUDNESS = Processing(AUDIO, "audio-classification", ClassAnswer("logits", ("loud", "quiet")))

MODELS: dict[str, tuple[str, Processing]] = {
    "embed": (EMBED, EMBEDDING),
    "score": (SCORE, SCORING),
    "sentiment": (SENTIMENT, SENTIMENTS),
    "tag": (TAG, TAGGING),
    "color": (COLOR, COLORS),
    "loud": (LOUD, LOUDNESS),
}

PADS = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0}


def tokenizer_json() -> bytes:
    """Return a tokenizer of whole words between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return str(tokenizer.to_str()).encode()


def write_raw_bundle(
    path: Path, name: str, description: Processing | None = None, *, reference: bool = False, **files: bytes
) -> Path:
    """Write one of the models with its processing as a bundle; `files` replaces files by name (dots as underscores).

    With `reference`, the bundle holds an FP32 reference, which is the same graph.
    """
    text, usual = MODELS[name]
    pad = (
        PadSpec(("tokens",), {key: value for key, value in PADS.items() if key in text})
        if "tokens" in text
        else PadSpec()
    )
    batch = BatchSpec(free=True, max_size=8, pad=pad, proof=BatchProof((1, 2), 2, 3, 0.0))
    content = {"processing.json": encode(description or usual)}
    if isinstance((description or usual).input, TextInput):
        content["tokenizer.json"] = tokenizer_json()
    content |= {key.replace("_", "."): value for key, value in files.items()}
    return write_bundle(path, text, name=name, batch=batch, files=content, reference=text if reference else None)


def write_raw_repository(root: Path) -> Path:
    """Write a folder with every model."""
    for name in MODELS:
        write_raw_bundle(root / name / "1", name)
    return root


def png(
    color: tuple[int, ...] = (255, 0, 0), size: tuple[int, int] = (8, 8), form: str = "PNG", **options: Any
) -> bytes:
    """Return an image file of one color; `size` is width and height."""
    file = io.BytesIO()
    Image.new("RGB", size, color[:3]).save(file, form, **options)
    return file.getvalue()


def wav(samples: Array | None = None, rate: int = 8000, form: str = "WAV", subtype: str = "FLOAT") -> bytes:
    """Return a sound file, by default a tenth of a second of a loud tone."""
    file = io.BytesIO()
    tone = np.sin(np.arange(rate // 10, dtype=np.float32)) if samples is None else samples
    soundfile.write(file, tone, rate, format=form, subtype=subtype if form == "WAV" else "PCM_16")
    return file.getvalue()
