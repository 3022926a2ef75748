"""`processing.json`: how text, images or sound become a model's inputs, and its outputs answers. Data, never code.

A bundle is untrusted, so the description is parsed strictly: unknown fields, steps and values are refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from demi.errors import BundleError

SCHEMA = 1

PositiveInt = Annotated[int, Meta(ge=1, le=1 << 24)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Function = Literal["softmax", "sigmoid", "none"]
"""From logits to scores."""
Pooling = Literal["mean", "cls", "last", "max"]
"""From one vector a token to one vector a text: their mean, that of the first or last token, or the largest of each."""


class TextInput(Struct, frozen=True, forbid_unknown_fields=True, tag="text", tag_field="kind"):
    """Texts, tokenized by the bundle's `tokenizer.json` and padded to the longest of a request."""

    max_length: PositiveInt
    """Most tokens of a text (or pair), special tokens included."""
    ids: Name = "input_ids"
    """The model's input for token ids; the next two are optional."""
    mask: Name | None = "attention_mask"
    types: Name | None = None
    """Token types: 0 for the first text, 1 for the second of a pair."""
    pair: bool = False
    """True if the model compares two texts: `text` and `text_pair`."""
    pad_id: Annotated[int, Meta(ge=0)] = 0
    pad_type: Annotated[int, Meta(ge=0)] = 0
    pad_side: Literal["right", "left"] = "right"
    truncation_side: Literal["right", "left"] = "right"
    prompts: dict[str, str] = {}
    """Texts to put before a text, by the name of their use, such as `query`."""


class Resize(Struct, frozen=True, forbid_unknown_fields=True):
    """Resizing to `height` and `width`, or of the shorter side to `shortest_edge` with the same aspect ratio."""

    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    shortest_edge: PositiveInt | None = None


class ImageInput(Struct, frozen=True, forbid_unknown_fields=True, tag="image", tag_field="kind"):
    """Images: upright, in `mode`, resized, cropped around the center, scaled, and normalized, in this order.

    Pixels are `(value * scale - mean) / std`, in float32.
    """

    pixels: Name = "pixel_values"
    mode: Literal["RGB", "L"] = "RGB"
    resize: Resize | None = None
    crop: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width; smaller images are padded with zeros."""
    scale: float | None = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: Literal["first", "last"] = "first"


class AudioInput(Struct, frozen=True, forbid_unknown_fields=True, tag="audio", tag_field="kind"):
    """Sound: the mean of its channels, resampled to `rate`, and padded to the longest of a request."""

    samples: Name = "input_values"
    mask: Name | None = None
    """The model's input that is 1 for samples and 0 for padding."""
    rate: Annotated[int, Meta(ge=100, le=768_000)] = 16_000
    """Samples per second."""
    normalize: bool = True
    """Shift and scale each sound to zero mean and unit variance."""
    pad_value: float = 0.0
    max_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 600.0


class LogMelInput(Struct, frozen=True, forbid_unknown_fields=True, tag="log-mel", tag_field="kind"):
    """Sound as Whisper takes it: log-mel features of the mean of its channels, resampled, and padded to `seconds`."""

    features: Name = "input_features"
    rate: Annotated[int, Meta(ge=16_000, le=48_000)] = 16_000
    """Samples per second."""
    bands: Annotated[int, Meta(ge=1, le=512)] = 80
    window: Annotated[int, Meta(ge=16, le=1 << 14)] = 400
    """Samples of a window."""
    hop: Annotated[int, Meta(ge=16, le=1 << 14)] = 160
    """Samples from one window to the next."""
    seconds: Annotated[int, Meta(ge=1, le=60)] = 30
    """Length of every sound; longer ones are cut if they may be."""
    max_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 600.0
    """Longest sound that is read."""

    @property
    def samples(self) -> int:
        """Return the samples of every sound."""
        return self.rate * self.seconds


class EmbeddingAnswer(Struct, frozen=True, forbid_unknown_fields=True, tag="embedding", tag_field="kind"):
    """`embedding`: one vector a row; a model with one vector a token has them pooled."""

    output: Name
    pooling: Pooling | None = None
    normalize: bool = False
    """Scale each vector to length 1."""


class ClassAnswer(Struct, frozen=True, forbid_unknown_fields=True, tag="classes", tag_field="kind"):
    """`scores`: one number a class, and `label`: the class with the largest."""

    output: Name
    labels: tuple[str, ...]
    function: Function = "softmax"


class ScoreAnswer(Struct, frozen=True, forbid_unknown_fields=True, tag="score", tag_field="kind"):
    """`score`: one number a row, such as the relevance of a text for a query."""

    output: Name
    function: Function = "sigmoid"


class TokenAnswer(Struct, frozen=True, forbid_unknown_fields=True, tag="tokens", tag_field="kind"):
    """`entities`: for each text a JSON list of the tokens whose label is not in `ignored`, with their places in it."""

    output: Name
    labels: tuple[str, ...]
    ignored: tuple[str, ...] = ("O",)


TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]


class CachePair(Struct, frozen=True, forbid_unknown_fields=True):
    """An output of one run that is an input of the next: a decoder's cache, or what an encoder hands to its decoder."""

    output: Name
    input: Name


class DecoderGeneration(Struct, frozen=True, forbid_unknown_fields=True, tag="decoder", tag_field="kind"):
    """Greedy continuation of a text, such as GPT-2's.

    A step takes the ids of new tokens and the cache of all earlier ones, and returns logits for the next token and the
    longer cache. The first step takes the whole text and a cache of length 0.
    """

    cache: tuple[CachePair, ...]
    """Keys and values of each layer: the output of a step, and the input of the next."""
    max_length: PositiveInt
    """Most tokens of text and continuation together."""
    ids: Name = "input_ids"
    logits: Name = "logits"
    """The output with a number for each token of the vocabulary: FP32[batch, vocabulary]."""
    start: tuple[TokenId, ...] = ()
    """The ids that an empty text stands for."""
    ends: tuple[TokenId, ...] = ()
    """Tokens that end the continuation and are not part of it."""
    suppressed: tuple[TokenId, ...] = ()
    """Tokens that are never chosen."""
    suppressed_first: tuple[TokenId, ...] = ()
    """Tokens that are not chosen in the first step."""


class Languages(Struct, frozen=True, forbid_unknown_fields=True):
    """Languages that a model of speech writes: the token at `place` of its `start` chooses one."""

    tokens: dict[Annotated[str, Meta(pattern="^[a-z][a-z-]{1,15}$")], TokenId]
    """Their tokens by code, such as `en`."""
    place: Annotated[int, Meta(ge=1, le=64)]
    detected: bool = True
    """Take the most probable language of each sound unless a request names one; else the language in `start`."""


class EncoderDecoderGeneration(
    Struct, frozen=True, forbid_unknown_fields=True, tag="encoder-decoder", tag_field="kind"
):
    """Greedy generation from what an encoder makes of the input once, such as T5's and Whisper's.

    The encoder is the bundle in the folder `encoder`. Steps are those of `DecoderGeneration`; the first takes `start`.
    """

    cache: tuple[CachePair, ...]
    max_length: PositiveInt
    """Most tokens that the decoder takes, `start` included."""
    memory: tuple[CachePair, ...]
    """The encoder's outputs, and the decoder's inputs that hold them in every step."""
    start: tuple[TokenId, ...]
    """The decoder's first ids."""
    ids: Name = "input_ids"
    logits: Name = "logits"
    ends: tuple[TokenId, ...] = ()
    suppressed: tuple[TokenId, ...] = ()
    suppressed_first: tuple[TokenId, ...] = ()
    languages: Languages | None = None
    """None for a model that writes one language, or is not told which."""


Generation = DecoderGeneration | EncoderDecoderGeneration

RawInput = TextInput | ImageInput | AudioInput | LogMelInput
AnswerKind = EmbeddingAnswer | ClassAnswer | ScoreAnswer | TokenAnswer


class Processing(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `processing.json`: the task by its name in transformers, the raw input, and the answer.

    Without an `answer`, the model's outputs are the answer.
    """

    input: RawInput
    task: Annotated[str, Meta(pattern="^[a-z0-9-]{0,64}$")] = ""
    answer: AnswerKind | None = None
    generation: Generation | None = None
    """Settings of generation, token by token; such a model has no `answer`."""
    schema: int = SCHEMA


def encode(processing: Processing) -> bytes:
    """Return the description as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(processing), indent=2) + b"\n"


def decode(data: bytes, where: str) -> Processing:
    """Return a description from its bytes. Raises BundleError, naming the field that is wrong."""
    try:
        found = msgspec.json.decode(data, type=Processing)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"`processing.json` is not valid: {error}", where=where, hint="export the model again"
        ) from error
    if found.schema != SCHEMA:
        raise BundleError(
            f"`processing.json` has schema {found.schema}; this Demi reads schema {SCHEMA}",
            where=where,
            hint="export the model again, or use the version of Demi that wrote it",
        )
    if why := _contradiction(found):
        raise BundleError(f"`processing.json` is not valid: {why}", where=where, hint="export the model again")
    return found


def _contradiction(found: Processing) -> str:
    """Return what makes no sense although every field is valid by itself; empty if nothing does."""
    if isinstance(found.input, ImageInput) and (why := _image_contradiction(found.input)):
        return why
    if found.generation is not None:
        return _generation_contradiction(found)
    if isinstance(found.answer, TokenAnswer) and not isinstance(found.input, TextInput):
        return "only texts have tokens"
    if isinstance(found.answer, EmbeddingAnswer) and found.answer.pooling and not isinstance(found.input, TextInput):
        return "only the vectors of tokens are pooled"
    return ""


def _generation_contradiction(found: Processing) -> str:
    generation = found.generation
    assert generation is not None
    if found.answer is not None:
        return "a model that generates has no other answer"
    if isinstance(generation, DecoderGeneration) and not isinstance(found.input, TextInput):
        return "only a text can be continued"
    if isinstance(found.input, TextInput) and found.input.pair:
        return "texts are generated from one text, not from a pair"
    if not generation.cache:
        return "`cache` is empty"
    if isinstance(generation, EncoderDecoderGeneration) and not (generation.memory and generation.start):
        return "`memory` and `start` cannot be empty"
    languages = generation.languages if isinstance(generation, EncoderDecoderGeneration) else None
    if languages and (not languages.tokens or languages.place >= len(generation.start)):
        return "`languages` needs tokens, and a place in `start` after its first token"
    if len(generation.start) >= generation.max_length:
        return "`start` leaves no room for a token"
    return ""


def _image_contradiction(image: ImageInput) -> str:
    resize, channels = image.resize, len(image.mode)
    if resize and (resize.shortest_edge is None) == (resize.height is None or resize.width is None):
        return "`resize` needs either `height` and `width`, or `shortest_edge`"
    if (image.mean is None) != (image.std is None):
        return "`mean` and `std` belong together"
    for name, values in (("mean", image.mean), ("std", image.std)):
        if values is not None and len(values) != channels:
            return f"`{name}` has {len(values)} values for {channels} channels"
    return "`std` holds a zero" if image.std and 0.0 in image.std else ""
