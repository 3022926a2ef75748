"""The preprocessing and postprocessing of one model, opened from its bundle and checked against its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.errors import BundleError, InputError
from demi.files import why_unreadable
from demi.processing.answers import answer_specs, make_answers
from demi.processing.description import (
    AnswerKind,
    AudioInput,
    ClassAnswer,
    EmbeddingAnswer,
    ImageInput,
    LogMelInput,
    Processing,
    ScoreAnswer,
    TextInput,
    TokenAnswer,
    decode,
)
from demi.processing.images import ImagePreprocessor
from demi.processing.log_mel import LogMelPreprocessor
from demi.processing.prepared import USUAL, AnswerOptions, Prepared, Preprocessor, RawRows, Row
from demi.processing.sounds import AudioPreprocessor
from demi.processing.texts import TextPreprocessor
from demi.tensors import DType, Feeds, TensorSpec

WASTE = 1.5
"""Texts of one run, padded to the longest, have at most this many times their own tokens."""

MOST_DESCRIPTION = 16 << 20
"""Largest `processing.json` in bytes: the labels of a large model take less than one MiB."""
MOST_TOKENIZER = 256 << 20
"""Largest `tokenizer.json` in bytes: that of a vocabulary of 250,000 pieces takes about 20 MiB."""


class Processor:
    """Turns raw inputs into a model's inputs, and its outputs into answers. Thread-safe.

    Raises BundleError if the description does not fit the model's inputs and outputs, and PackageError if the package
    for its kind of input is missing.
    """

    def __init__(
        self,
        description: Processing,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        tokenizer: str = "",
        where: str = "",
    ) -> None:
        self.description = description
        self._outputs = {spec.name: spec for spec in outputs}
        specs = {spec.name: spec for spec in inputs}
        _check_inputs(description, specs, where)
        _check_answer(description, self._outputs, where)
        self._preprocessor = _preprocessor(description, specs, tokenizer, where)
        batch = inputs[0].shape[0]
        self.inputs = tuple(TensorSpec(name, DType.BYTES, (batch,)) for name in raw_names(description))
        """The raw inputs: `text` (and `text_pair`), `image` or `audio`, one element a row."""
        self.answers = self._answer_specs()
        """The answers, in the form of outputs."""
        for spec in (*self.inputs, *self.answers):
            if spec.name in specs or spec.name in self._outputs:
                raise _misfit(f"the model has a tensor called `{spec.name}` itself", where)

    @property
    def kind(self) -> str:
        """The raw input: `text`, `image` or `audio`."""
        return self.inputs[0].name

    @property
    def text(self) -> TextPreprocessor | None:
        """The text preprocessor; None for images and sound."""
        return self._preprocessor if isinstance(self._preprocessor, TextPreprocessor) else None

    def needs(self, names: Sequence[str]) -> list[str]:
        """Return the model's outputs that are needed for these outputs and answers."""
        answers = {spec.name for spec in self.answers}
        own = [name for name in names if name not in answers]
        source = self.description.answer
        if source is not None and len(own) < len(names) and source.output not in own:
            own.append(source.output)
        return own

    def prepare(self, raw: RawRows, most_rows: int = 1 << 30, *, together: bool = False) -> list[Prepared]:
        """Return a request's rows as the model's inputs, in runs of at most `most_rows` rows of about equal size.

        With `together`, all rows are one run, as needed for outputs whose shape depends on the length of the rows.
        Raises InputError, naming the row, for one that is not what it should be, or that is longer than the model takes.
        """
        if not len(raw):
            raise InputError(f"there is no {self.kind}", hint="send at least one")
        rows = self._preprocessor.read(raw, with_tokens=isinstance(self.description.answer, TokenAnswer))
        if together:
            self._check_together(rows)
            return [self._stack(rows, range(len(rows)))]
        return [self._stack(rows, sorted(indices)) for indices in self._groups(rows, most_rows)]

    def answer(self, prepared: Prepared, outputs: Feeds, options: AnswerOptions = USUAL) -> Feeds:
        """Return the answers to one run by name, from the model's outputs."""
        source = self.description.answer
        if source is None:
            return {}
        if options != USUAL:
            source = _changed(source, options)
        text = self.description.input
        mask = prepared.feeds[text.mask] if isinstance(text, TextInput) and text.mask else None
        return make_answers(source, outputs[source.output], mask, prepared.tokens)

    def join(self, runs: Sequence[Prepared], answers: Sequence[Feeds]) -> Feeds:
        """Return the answers of several runs as one, in the order of the request's rows."""
        if len(runs) == 1:
            return answers[0]  # its rows are in order
        order = np.argsort([index for run in runs for index in run.indices])
        return {name: np.concatenate([each[name] for each in answers])[order] for name in answers[0]}

    def run(self, raw: RawRows, names: Sequence[str], compute: Callable[[Feeds, list[str]], Feeds]) -> Feeds:
        """Return outputs and answers by name for raw rows; `compute` returns the model's outputs for its inputs.

        Outputs other than answers are asked for of all rows together. Raises as `prepare` does.
        """
        needed = self.needs(names)
        together = any(name in self._outputs for name in names)
        runs = self.prepare(raw, together=together)
        found = []
        for run in runs:
            outputs = compute(run.feeds, needed)
            made = {**outputs, **self.answer(run, outputs)}
            found.append({name: made[name] for name in names})
        return self.join(runs, found)

    def _stack(self, rows: Sequence[Row], indices: Sequence[int]) -> Prepared:
        chosen = [rows[index] for index in indices]
        counts = tuple(len(row.values) for row in chosen) if self.kind == "text" else ()
        tokens = tuple(row.tokens for row in chosen)
        seconds = sum(row.seconds for row in chosen)
        return Prepared(self._preprocessor.stack(chosen), tuple(indices), counts, tokens, seconds)

    def _groups(self, rows: Sequence[Row], most_rows: int) -> list[list[int]]:
        """Return the rows of each run: by size, the largest first, so that little is padding."""
        groups: list[list[int]] = []
        for index in sorted(range(len(rows)), key=lambda index: rows[index].size, reverse=True):
            if groups and len(groups[-1]) < most_rows and self._fits(rows, groups[-1], index):
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def _fits(self, rows: Sequence[Row], group: Sequence[int], index: int) -> bool:
        """Return whether a row can share the run of larger ones: it is as large, or padding does not cost too much."""
        largest, size = rows[group[0]].size, rows[index].size
        if size == largest or not self._preprocessor.pads:
            return size == largest
        own = sum(rows[each].size[0] for each in group) + size[0]
        return (len(group) + 1) * largest[0] <= WASTE * own

    def _check_together(self, rows: Sequence[Row]) -> None:
        if not self._preprocessor.pads and len({row.size for row in rows}) > 1:
            raise InputError(
                f"the rows have different sizes, {' and '.join(str(list(row.size)) for row in rows[:2])}, and the model "
                "has no mask for padding",
                hint="send one row in each request, or ask for the answers only",
            )

    def _answer_specs(self) -> tuple[TensorSpec, ...]:
        source = self.description.answer
        return answer_specs(source, self._outputs[source.output]) if source else ()


def _changed(answer: AnswerKind, options: AnswerOptions) -> AnswerKind:
    if isinstance(answer, EmbeddingAnswer) and options.normalize is not None:
        return msgspec.structs.replace(answer, normalize=options.normalize)
    if isinstance(answer, ClassAnswer | ScoreAnswer) and options.raw_scores:
        return msgspec.structs.replace(answer, function="none")
    return answer


def open_processor(bundle: Bundle) -> Processor | None:
    """Return the processor of a bundle; None for one whose inputs are tensors only, or that generates.

    Raises as Processor does.
    """
    if not bundle.has_processing:
        return None
    description, tokenizer = read_description(bundle)
    if description.generation is not None:
        return None  # `demi.generation` opens it
    return Processor(description, bundle.manifest.inputs, bundle.manifest.outputs, tokenizer, str(bundle.path))


def read_description(bundle: Bundle) -> tuple[Processing, str]:
    """Return the description in a bundle, and the tokenizer's JSON; empty for inputs and answers that need none.

    Raises BundleError for one that is damaged or not valid.
    """
    where = str(bundle.path)
    description = decode(_read(bundle.path / manifests.PROCESSING, MOST_DESCRIPTION, where), where)
    if not isinstance(description.input, TextInput) and description.generation is None:
        return description, ""
    if manifests.TOKENIZER not in bundle.manifest.files:
        raise _misfit(f"it needs `{manifests.TOKENIZER}`, which the bundle does not have", where)
    data = _read(bundle.path / manifests.TOKENIZER, MOST_TOKENIZER, where)
    try:
        return description, data.decode()
    except UnicodeDecodeError as error:
        raise _misfit(f"`{manifests.TOKENIZER}` is not UTF-8 text", where) from error


def raw_names(description: Processing) -> tuple[str, ...]:
    """Return the names of the raw inputs."""
    match description.input:
        case TextInput(pair=pair):
            return ("text", "text_pair") if pair else ("text",)
        case ImageInput():
            return ("image",)
        case AudioInput() | LogMelInput():
            return ("audio",)


def _preprocessor(description: Processing, specs: Mapping[str, TensorSpec], tokenizer: str, where: str) -> Preprocessor:
    match description.input:
        case TextInput():
            return TextPreprocessor(description.input, tokenizer, specs, where)
        case ImageInput():
            return ImagePreprocessor(description.input, specs)
        case AudioInput():
            return AudioPreprocessor(description.input, specs)
        case LogMelInput():
            return LogMelPreprocessor(description.input, specs)


def _read(path: Path, most: int, where: str) -> bytes:
    try:
        if path.stat().st_size > most:
            raise _misfit(f"`{path.name}` has more than {most:,} bytes", where)
        return path.read_bytes()
    except OSError as error:
        raise _misfit(f"`{path.name}` cannot be read: {why_unreadable(error)}", where) from error


def _check_inputs(description: Processing, specs: Mapping[str, TensorSpec], where: str) -> None:
    """Raise BundleError unless the description fills exactly the model's inputs, with the ranks and kinds they have."""
    match description.input:
        case TextInput() as text:
            filled = {name: 2 for name in (text.ids, text.mask, text.types) if name}
            floats = False
        case ImageInput() as image:
            filled, floats = {image.pixels: 4}, True
        case AudioInput() as audio:
            filled, floats = {name: 2 for name in (audio.samples, audio.mask) if name}, True
        case LogMelInput() as sound:
            filled, floats = {sound.features: 3}, True
    if missing := sorted(specs.keys() ^ filled.keys()):
        raise _misfit(
            f"it fills {', '.join(sorted(filled))}, but the model's inputs are {', '.join(specs)} (see `{missing[0]}`)",
            where,
        )
    first = next(iter(filled))
    for name, rank in filled.items():
        spec = specs[name]
        if len(spec.shape) != rank:
            raise _misfit(f"it fills `{name}` with {rank} axes, but the model's input is {spec}", where)
        if spec.dtype in (DType.BYTES, DType.BF16) or (name == first and spec.dtype.is_float != floats):
            raise _misfit(f"it cannot fill the input {spec}", where)
    if isinstance(description.input, LogMelInput):
        _check_features(description.input, specs[first], where)


def _check_features(sound: LogMelInput, spec: TensorSpec, where: str) -> None:
    made = (sound.bands, sound.samples // sound.hop)
    if any(isinstance(dim, int) and dim != size for dim, size in zip(spec.shape[1:], made, strict=True)):
        raise _misfit(f"it makes features [{made[0]}, {made[1]}], but the model's input is {spec}", where)


def _check_answer(description: Processing, outputs: Mapping[str, TensorSpec], where: str) -> None:
    """Raise BundleError unless the answer can be made of the model's outputs."""
    answer = description.answer
    if answer is None:
        return
    spec = outputs.get(answer.output)
    if spec is None:
        raise _misfit(f"it reads the output `{answer.output}`, which the model does not have", where)
    rank = 3 if isinstance(answer, TokenAnswer) or (isinstance(answer, EmbeddingAnswer) and answer.pooling) else 2
    if len(spec.shape) != rank or spec.dtype in (DType.BYTES, DType.BF16):
        raise _misfit(f"it needs an output with {rank} axes, but the model's is {spec}", where)
    classes = spec.shape[-1]
    if isinstance(answer, ClassAnswer | TokenAnswer) and isinstance(classes, int) and len(answer.labels) != classes:
        raise _misfit(f"it has {len(answer.labels)} labels for the {classes} classes of {spec}", where)


def _misfit(why: str, where: str) -> BundleError:
    return BundleError(f"`{manifests.PROCESSING}` does not fit the bundle: {why}", where=where, hint="export it again")
