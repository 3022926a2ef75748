"""Tiny bundles that generate, as ONNX text: what they write can be computed in the head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from demi.bundles.bundle import open_bundle, write_manifest
from demi.bundles.manifest import BatchSpec
from demi.generation.generator import Prompt
from demi.generation.recorded import RecordedText, write_texts
from demi.processing.description import (
    CachePair,
    DecoderGeneration,
    EncoderDecoderGeneration,
    Languages,
    LogMelInput,
    Processing,
    TextInput,
    encode,
)
from tests.server.bundles import write_bundle

WORDS = ["[END]", "one", "two", "three", "four", "five", "six", "seven", "eight"]

COUNT = """count (int64[batch, tokens] input_ids, float[batch, 1, past, 1] past)
=> (float[batch, 9] logits, float[batch, 1, seen, 1] present)
<int64[4] column = {0, 1, -1, 1}, int64 words = {9}, float[2] off_on = {0.0, 1.0}, int64[1] third = {2},
 int64[1] first = {0}>
{ ids = Cast<to = 1>(input_ids)
  new = Reshape(ids, column)
  present = Concat<axis = 2>(past, new)
  sizes = Shape(present)
  seen = Gather(sizes, third)
  rows = Gather(sizes, first)
  one = Constant<value_int = 1>()
  number = Add(seen, one)
  many = Expand(number, rows)
  next = Mod(many, words)
  logits = OneHot<axis = -1>(next, words, off_on) }"""
"""Each word is its place in the text, which the cache alone knows; the ninth is [END]."""

BREAKS = COUNT.replace("count", "breaks", 1).replace(
    "logits = OneHot<axis = -1>(next, words, off_on) }",
    """plain = OneHot<axis = -1>(next, words, off_on)
  four = Constant<value_int = 4>()
  fits = Less(seen, four)
  divisor = Cast<to = 1>(fits)
  logits = Div(plain, divisor) }""",
)
"""The same, but after four words its logits are infinite or NaN."""

SLIPS = COUNT.replace("count", "slips", 1).replace(
    "many = Expand(number, rows)",
    """seven = Constant<value_int = 7>()
  late = GreaterOrEqual(seen, seven)
  slip = Cast<to = 7>(late)
  slipped = Add(number, slip)
  many = Expand(slipped, rows)""",
)
"""The same, but after seven words it is one word ahead."""

READ = """read (int64[batch, source] input_ids) => (float[batch, 1, source, 1] memory)
<int64[4] column = {0, 1, -1, 1}>
{ numbers = Cast<to = 1>(input_ids)
  memory = Reshape(numbers, column) }"""

REPEAT = """repeat (int64[batch, tokens] input_ids, float[batch, 1, past, 1] past, float[batch, 1, source, 1] memory)
=> (float[batch, 9] logits, float[batch, 1, seen, 1] present)
<int64[4] column = {0, 1, -1, 1}, int64 words = {9}, float[2] off_on = {0.0, 1.0}, int64 third = {2}, int64 one = {1},
 int64[1] flat = {-1}>
{ ids = Cast<to = 1>(input_ids)
  new = Reshape(ids, column)
  present = Concat<axis = 2>(past, new)
  sizes = Shape(present)
  seen = Gather<axis = 0>(sizes, third)
  place = Sub(seen, one)
  number = Gather<axis = 2>(memory, place)
  plain = Reshape(number, flat)
  next = Cast<to = 7>(plain)
  logits = OneHot<axis = -1>(next, words, off_on) }"""
"""Word after word of the text that the encoder read, until its end."""

HEAR = """hear (float[batch, 4, 100] input_features) => (float[batch, 1, 2, 1] memory)
<int64[2] all = {1, 2}, int64[1] last = {3}, float three = {3.0}, float five = {5.0}, float silence = {0.0}>
{ largest = ReduceMax<keepdims = 1>(input_features, all)
  heard = Greater(largest, silence)
  number = Where(heard, three, five)
  word = Unsqueeze(number, last)
  end = Mul(word, silence)
  memory = Concat<axis = 2>(word, end) }"""
"""The word `three` for a sound, and `five` for silence."""

LISTEN = """listen (float[batch, 4, 100] input_features) => (float[batch, 1, 4, 1] memory)
<int64[2] all = {1, 2}, int64[1] last = {3}, float silence = {0.0}, float noisy = {0.125}, float quiet = {0.25},
 float[1, 1, 2, 1] rest = {0.0, 3.0}, float[1, 1, 1, 1] end = {0.0}>
{ largest = ReduceMax<keepdims = 1>(input_features, all)
  heard = Greater(largest, silence)
  language = Where(heard, noisy, quiet)
  first = Unsqueeze(language, last)
  memory = Concat<axis = 2>(first, rest, end) }"""
"""An eighth of the language's number, a place without meaning, a 3, and the end."""

WRITE = """write (int64[batch, tokens] input_ids, float[batch, 1, past, 1] past, float[batch, 1, source, 1] memory)
=> (float[batch, 9] logits, float[batch, 1, seen, 1] present)
<int64[4] column = {0, 1, -1, 1}, int64 words = {9}, float[2] off_on = {0.0, 1.0}, int64 third = {2}, int64 one = {1},
 int64[1] flat = {-1}>
{ ids = Cast<to = 1>(input_ids)
  new = Reshape(ids, column)
  present = Concat<axis = 2>(past, new)
  sizes = Shape(present)
  seen = Gather<axis = 0>(sizes, third)
  place = Sub(seen, one)
  second = Min(place, one)
  language = Gather<axis = 2>(present, second)
  number = Gather<axis = 2>(memory, place)
  product = Mul(number, language)
  plain = Reshape(product, flat)
  next = Cast<to = 7>(plain)
  logits = OneHot<axis = -1>(next, words, off_on) }"""
"""After the start token the language, 1 for noise and 2 for silence; after that, three times the language's number."""

CACHE = (CachePair(output="present", input="past"),)
LONG = 100_000
"""Most tokens: a text without an end goes on for minutes."""

COUNTING = Processing(
    TextInput(max_length=16, mask=None),
    "text-generation",
    generation=DecoderGeneration(CACHE, LONG, ends=(0,), start=(1,)),
)
ENDLESS = Processing(TextInput(max_length=16, mask=None), "text-generation", generation=DecoderGeneration(CACHE, LONG))
REPEATING = Processing(
    TextInput(max_length=16, mask=None),
    "text2text-generation",
    generation=EncoderDecoderGeneration(
        CACHE, 16, memory=(CachePair(output="memory", input="memory"),), start=(0,), ends=(0,)
    ),
)

HEARING = Processing(
    LogMelInput(bands=4, seconds=1),
    "automatic-speech-recognition",
    generation=msgspec.structs.replace(REPEATING.generation, start=(8,)),
)

WRITING = msgspec.structs.replace(
    HEARING,
    generation=msgspec.structs.replace(
        REPEATING.generation, start=(8, 1, 7), languages=Languages({"en": 1, "de": 2}, place=1)
    ),
)

UNJOINED = BatchSpec(free=False, why_not="not needed here")


def words_json(*, ends: bool = False) -> bytes:
    """Return a tokenizer of whole words; with `ends`, it puts [END] behind a text."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="eight"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[END]"])
    if ends:
        from tokenizers import processors

        tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 0)])
    return str(tokenizer.to_str()).encode()


def write_decoder(
    path: Path,
    text: str = COUNT,
    description: Processing = COUNTING,
    *,
    name: str = "count",
    batch: BatchSpec = UNJOINED,
) -> Path:
    """Write a bundle that continues texts."""
    files = {"processing.json": encode(description), "tokenizer.json": words_json()}
    return write_bundle(path, text, name=name, batch=batch, files=files)


def write_checked_decoder(
    path: Path,
    half: str = COUNT,
    *,
    texts: Sequence[RecordedText] = (RecordedText(Prompt((1, 2)), (3, 4, 5, 6, 7, 8, 0)),),
    at_export: float | None = None,
    reference: str | None = COUNT,
) -> Path:
    """Write a bundle of COUNT in FP32 that `demi check` checks: with golden inputs, texts and what the export measured."""
    files = {"processing.json": encode(COUNTING), "tokenizer.json": words_json()}
    if at_export is not None:
        files["accuracy.json"] = msgspec.json.encode({"generation": {"same": at_export}})
    golden = {"input_ids": np.array([[1, 2]]), "past": np.zeros((1, 1, 0, 1), np.float32)}
    found = write_bundle(path, half, name="count", batch=UNJOINED, files=files, golden=golden, reference=reference)
    if texts:
        write_texts(found, texts)
    write_manifest(found, open_bundle(found, verify=False).manifest)
    return found


def write_encoder_decoder(
    path: Path, description: Processing = REPEATING, encoder_text: str = READ, decoder_text: str = REPEAT
) -> Path:
    """Write a bundle that repeats a text, with its encoder in it."""
    name = encoder_text.split()[0]
    encoder = write_bundle(path.parent / f"{name}-alone", encoder_text, name=path.name, batch=UNJOINED)
    parts = {f"encoder/{file.name}": file.read_bytes() for file in encoder.iterdir()}
    files = {"processing.json": encode(description), "tokenizer.json": words_json(ends=True), **parts}
    return write_bundle(path, decoder_text, name=path.name, batch=UNJOINED, files=files)


def write_generating_repository(root: Path) -> Path:
    """Write a folder with every model that generates, and nothing else."""
    models_folder = root / "models"
    write_decoder(models_folder / "count" / "1")
    write_decoder(models_folder / "endless" / "1", description=ENDLESS, name="endless")
    write_decoder(models_folder / "breaks" / "1", BREAKS, name="breaks")
    (root / "parts").mkdir()
    for whole in (
        write_encoder_decoder(root / "parts" / "repeat"),
        write_encoder_decoder(root / "parts" / "hear", HEARING, HEAR),
        write_encoder_decoder(root / "parts" / "write", WRITING, LISTEN, WRITE),
    ):
        (models_folder / whole.name).mkdir()
        whole.rename(models_folder / whole.name / "1")
    return models_folder
