"""The generator of one model, opened from its bundle and checked against its tensors: prompts in, sequences out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from demi.bundles.bundle import Bundle
from demi.errors import InputError
from demi.generation.checks import Tensors, check_generation
from demi.generation.greedy import Finish, Greedy
from demi.generation.growing_text import GrowingText
from demi.generation.languages import LanguageChoice
from demi.processing.description import EncoderDecoderGeneration, Generation, Processing, TextInput
from demi.processing.prepared import RawRows, Row
from demi.processing.processor import Processor, raw_names, read_description
from demi.processing.texts import TextPreprocessor, open_tokenizer
from demi.tensors import Feeds, TensorSpec

USUAL_TOKENS = 64
"""Most new tokens that continue a text if a request sets no limit; an encoder's input ends by itself."""


@dataclass(frozen=True, slots=True)
class Options:
    """Choices of one request."""

    max_tokens: int | None = None
    """Most new tokens; None for the usual number."""
    stop: tuple[str, ...] = ()
    """Texts that end the generated one, and are not part of it."""
    language: str | None = None
    """Code of the language to write, for a model of speech that has several; None leaves it to the model."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a request, ready for the model."""

    first: tuple[int, ...]
    """The ids of the decoder's first step."""
    encoder: Feeds | None = None
    """The encoder's inputs; None for a model that has none."""
    count: int = 0
    """Tokens of the prompt, for the account of a request."""
    seconds: float = 0.0
    """Length of a sound."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One step's addition to a text; the last one has the reason for the end."""

    text: str
    finish: Finish = ""
    tokens: int = 0
    """Tokens generated so far, an end token included."""
    language: str = ""
    """Code of the language that is written; empty for a model that has no codes."""


@dataclass(slots=True)
class Continuation:
    """One generated text. Owns its sequence; used by one thread at a time: run `feeds`, `take` the outputs, until the end."""

    sequence: Greedy
    text: GrowingText
    ends: frozenset[int]
    finish: Finish = field(default="")
    language: str = ""

    @property
    def feeds(self) -> Feeds:
        """The decoder's inputs for the next step."""
        return self.sequence.feeds

    def take(self, outputs: Feeds) -> Piece:
        """Return the text that a step adds. Raises InferenceError for NaN or infinity."""
        token = self.sequence.take(outputs)
        text = "" if token in self.ends else self.text.add(token)
        self.finish = "stop" if self.text.stopped else self.sequence.finish
        if self.finish:
            text += self.text.finish()
        return Piece(text, self.finish, len(self.sequence.tokens), self.language)


class Generator:
    """Turns texts or sounds into prompts, and prompts into sequences. Thread-safe.

    Raises BundleError if the description does not fit the tensors of decoder and encoder, and PackageError if the package
    for its kind of input is missing.
    """

    def __init__(
        self, description: Processing, decoder: Tensors, encoder: Tensors | None, tokenizer: str, where: str
    ) -> None:
        assert description.generation is not None  # whoever makes one has seen to it
        self.description = description
        self.rules: Generation = description.generation
        self.inputs = raw_names(description)
        """The names of its raw inputs: `text` or `audio`."""
        check_generation(self.rules, decoder, encoder, where)
        self._tokenizer = open_tokenizer(tokenizer, where)
        self._language = LanguageChoice(
            self.rules.languages if isinstance(self.rules, EncoderDecoderGeneration) else None
        )
        specs = {spec.name: spec for spec in decoder.inputs}
        self._encoder: Processor | None = None
        self._text: TextPreprocessor | None = None
        if encoder is not None:
            plain = msgspec.structs.replace(description, generation=None)
            self._encoder = Processor(plain, encoder.inputs, encoder.outputs, tokenizer, where)
        else:
            assert isinstance(description.input, TextInput)  # `decode` has seen to it
            self._text = TextPreprocessor(description.input, tokenizer, specs, where)

    @property
    def outputs(self) -> list[str]:
        """The decoder's outputs that a step needs."""
        return [self.rules.logits, *(pair.output for pair in self.rules.cache)]

    @property
    def cache_names(self) -> frozenset[str]:
        """The decoder's inputs and outputs that hold the cache."""
        return frozenset(name for pair in self.rules.cache for name in (pair.input, pair.output))

    @property
    def memory_names(self) -> list[str]:
        """The encoder's outputs that its decoder reads; empty without an encoder."""
        memory = self.rules.memory if isinstance(self.rules, EncoderDecoderGeneration) else ()
        return [pair.output for pair in memory]

    def prepare(self, raw: RawRows) -> list[Prompt]:
        """Return the prompts of raw rows, in order. Raises InputError, naming the row, for one that cannot be read.

        TooLongError is raised for a text that leaves no room for a token, unless it may be truncated.
        """
        if not len(raw):
            raise InputError(f"there is no {self.inputs[0]}", hint="send at least one")
        if self._encoder is not None:
            runs = sorted(self._encoder.prepare(raw, 1), key=lambda run: run.indices)
            return [Prompt(self.rules.start, run.feeds, sum(run.counts), run.seconds) for run in runs]
        assert self._text is not None
        found = [tuple(row.values) or self.rules.start for row in self._text.read(raw)]
        if () in found:
            raise InputError(f"text {found.index(())} has no tokens", hint="send a text to continue")
        return [Prompt(ids, count=len(ids)) for ids in found]

    def prompt_of(self, ids: Sequence[int]) -> Prompt:
        """Return the prompt of one text's token ids, special ones included, which are not checked."""
        if self._text is not None:
            return Prompt(tuple(ids), count=len(ids))
        assert self._encoder is not None  # a generator has either
        assert self._encoder.text is not None  # sounds have no ids
        return Prompt(self.rules.start, self._encoder.text.stack([Row(list(ids), [0] * len(ids))]), len(ids))

    @property
    def longest(self) -> int:
        """The most tokens of a text that it takes."""
        text = self.description.input
        return text.max_length if isinstance(text, TextInput) else 0

    def begin(
        self,
        prompt: Prompt,
        inputs: Sequence[TensorSpec],
        encoded: Feeds | None = None,
        options: Options | None = None,
    ) -> Continuation:
        """Return the text to generate for a prompt; `inputs` are the decoder's as its session takes them.

        `encoded` are the encoder's outputs. Raises InputError for a number of tokens that is not positive, and for a
        language that the model does not have.
        """
        options = options or Options()
        specs = {spec.name: spec for spec in inputs}
        first, language = self._language.start(prompt.first, options.language)
        sequence = Greedy(self.rules, specs, first, self._memory(specs, encoded), self.most(prompt, options))
        ends = frozenset(self.rules.ends)
        return Continuation(sequence, GrowingText(self._tokenizer, options.stop), ends, language=language)

    def detects(self, options: Options) -> bool:
        """Return whether a step before the text chooses its language. Raises InputError for an unknown language."""
        self._language.token(options.language)
        return options.language is None and self._language.detected

    def detection(self, prompt: Prompt, inputs: Sequence[TensorSpec], encoded: Feeds | None) -> Feeds:
        """Return the decoder's inputs of the step whose logits choose the language."""
        specs = {spec.name: spec for spec in inputs}
        before = prompt.first[: self._language.place]
        return Greedy(self.rules, specs, before, self._memory(specs, encoded), 1).feeds

    def detected(self, outputs: Feeds) -> str:
        """Return the code of the language that the logits choose. Raises InferenceError for NaN or infinity."""
        return self._language.choose(np.asarray(outputs[self.rules.logits][0], np.float32))

    def in_its_language(
        self, prompt: Prompt, inputs: Sequence[TensorSpec], encoded: Feeds | None, run: Callable[[Feeds], Feeds]
    ) -> Prompt:
        """Return a prompt that starts in the language that the decoder, `run`, detects; others as they are.

        Raises InferenceError as `detected` does.
        """
        if not self.detects(Options()):
            return prompt
        code = self.detected(run(self.detection(prompt, inputs, encoded)))
        return replace(prompt, first=self._language.start(prompt.first, code)[0])

    def _memory(self, specs: Mapping[str, TensorSpec], encoded: Feeds | None) -> Feeds:
        """Return the decoder's inputs that hold the encoder's outputs, in the dtypes that it takes."""
        if not isinstance(self.rules, EncoderDecoderGeneration):
            return {}
        assert encoded is not None  # `memory_names` of them
        with np.errstate(over="ignore"):
            return {
                pair.input: encoded[pair.output].astype(specs[pair.input].dtype.numpy, copy=False)
                for pair in self.rules.memory
            }

    def most(self, prompt: Prompt, options: Options) -> int:
        """Return the most new tokens for a prompt: as many as were asked for, and as the model has room for."""
        room = self.rules.max_length - len(prompt.first)
        asked = options.max_tokens
        if asked is None:
            asked = room if self._encoder is not None else USUAL_TOKENS
        if asked < 1:
            raise InputError(f"{asked} tokens cannot be generated", where="max_tokens", hint="ask for at least one")
        return min(asked, room)


def open_generator(bundle: Bundle) -> Generator | None:
    """Return the generator of a bundle, None for a bundle that does not generate. Raises as Generator does."""
    if not bundle.has_processing:
        return None
    description, tokenizer = read_description(bundle)
    if description.generation is None:
        return None
    encoder = bundle.encoder()
    return Generator(
        description,
        Tensors(bundle.manifest.inputs, bundle.manifest.outputs),
        Tensors(encoder.manifest.inputs, encoder.manifest.outputs) if encoder else None,
        tokenizer,
        str(bundle.path),
    )
