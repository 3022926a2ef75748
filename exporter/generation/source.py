"""Read a transformers folder that generates: its decoder as a source, with its encoder, rules and samples of generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from demi.calibration.raw_data import read_raw
from demi.errors import BundleError, InputError, SourceError
from demi.exporter.generation.descriptions import CONTINUING, LOGITS, SPEECH, Pairs, check_folder, describe_generator
from demi.exporter.generation.rules import Rules, rules_of
from demi.exporter.generation.samples import MOST_PROMPTS, Run, Trial, drawn_prompts, sampled_steps
from demi.exporter.passes.widen import widened_note
from demi.exporter.processing.found import Found
from demi.exporter.sources.options import Source, SourceKind, SourceOptions, check_options
from demi.generation.checks import Tensors
from demi.generation.generator import Generator, Options, Prompt
from demi.processing.description import CachePair, LogMelInput
from demi.tensors import DType, TensorSpec

WHOLE = Options(max_tokens=1 << 20)
"""As many tokens as the model has room for."""


@dataclass(frozen=True, slots=True)
class Part:
    """A decoder or an encoder: as a source, with its tensors, and as a function that runs it in PyTorch."""

    source: Source
    tensors: Tensors
    run: Run


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a model that generates, and how they are connected."""

    pairs: Pairs
    decoder: Part
    encoder: Part | None = None


def read_generator(path: Path, options: SourceOptions) -> tuple[Source, SourceOptions]:
    """Return the decoder of a model that generates, with its encoder, and the options with samples of real generation.

    Prompts are the user's texts or sounds; without any, they are drawn, but for sounds, which InputError demands. Raises
    SourceError for a folder without a tokenizer, or whose model does not generate with a cache of keys and values.
    """
    from demi.exporter.pytorch.generation import load_generator

    check_options(options, SourceKind.TRANSFORMERS, path)
    if options.inputs or options.output_names or options.samples or options.processing.given:
        raise SourceError(
            "a model that generates has its own inputs, outputs and tokenizer",
            where=str(path),
            hint="leave out --input, --output-names and --tokenizer, and give texts or sounds with --sample",
        )
    task = options.task or CONTINUING
    check_folder(path)
    if task == SPEECH and options.raw_samples is None:
        raise InputError("sound cannot be drawn at random", where="--sample", hint="give a folder of WAV or FLAC files")
    model, half_types = load_generator(path, task)
    rules = rules_of(model, path)
    parts = _decoder_alone(model, options, path) if task == CONTINUING else _both(model, task, options, path)
    found = describe_generator(path, task, rules, parts.pairs)
    generator = _fitted(found, parts, path)
    prompts, origin = _prompts(generator, parts, options, rules)
    encoded = [parts.encoder.run(prompt.encoder) if parts.encoder and prompt.encoder else None for prompt in prompts]
    inputs, run = parts.decoder.tensors.inputs, parts.decoder.run
    prompts = [
        generator.in_its_language(prompt, inputs, memory, run) for prompt, memory in zip(prompts, encoded, strict=True)
    ]
    sequences = [
        generator.begin(prompt, inputs, memory, WHOLE).sequence for prompt, memory in zip(prompts, encoded, strict=True)
    ]
    samples = tuple(sampled_steps(sequences, run))
    notes = (widened_note(half_types),) if half_types else ()
    decoder = replace(
        parts.decoder.source, processing=found, trial=Trial(generator, tuple(prompts), tuple(encoded)), notes=(*notes, *rules.notes), half_types=half_types,
        half_names=frozenset(name for pair in parts.pairs.cache for name in (pair.input, pair.output))
        | {pair.input for pair in parts.pairs.memory},
    )  # fmt: skip
    if parts.encoder is not None:
        names = frozenset(pair.output for pair in parts.pairs.memory)
        examples = tuple(prompt.encoder for prompt in prompts if prompt.encoder is not None)
        encoder = replace(parts.encoder.source, half_names=names, half_types=half_types, examples=examples)
        decoder = replace(decoder, encoder=encoder)
    return decoder, replace(options, samples=samples, raw_samples=None, drawn_from=origin)


def _decoder_alone(model: Any, options: SourceOptions, path: Path) -> Parts:
    from demi.exporter.pytorch import generation as torch_models

    step, cache = torch_models.decoder_step(model, path)
    decoder, pairs = _decoder(model, step, cache, (), options, path)
    return Parts(Pairs(pairs), decoder)


def _both(model: Any, task: str, options: SourceOptions, path: Path) -> Parts:
    """Return encoder and decoder of a model."""
    from demi.exporter.pytorch import generation as torch_models

    taken = _encoder_input(path, task)
    (example,) = torch_models.example_tensors((taken,))
    encoder, step, cache, memory = torch_models.encoder_decoder(model, taken, example, path)
    made = tuple(
        replace(spec, name=spec.name.replace("past_key_values", "memory").replace(".encoder", "")) for spec in memory
    )
    names = [spec.name for spec in made]
    source = torch_models.trace(encoder, (taken,), names, [example], options, path)
    read = Part(source, Tensors((taken,), made), partial(torch_models.run_module, encoder, (taken,), names))
    decoder, pairs = _decoder(model, step, cache, memory, options, path)
    remembered = tuple(CachePair(output=spec.name, input=into.name) for spec, into in zip(made, memory, strict=True))
    return Parts(Pairs(pairs, remembered), decoder, read)


def _encoder_input(path: Path, task: str) -> TensorSpec:
    from demi.exporter.processing.media import log_mel_description

    if task != SPEECH:
        return TensorSpec("input_ids", DType.INT64, ("batch", "source"))
    sound: LogMelInput = log_mel_description(path)
    return TensorSpec(sound.features, DType.FP32, ("batch", sound.bands, sound.samples // sound.hop))


def _decoder(
    model: Any,
    step: Any,
    cache: tuple[TensorSpec, ...],
    memory: tuple[TensorSpec, ...],
    options: SourceOptions,
    path: Path,
) -> tuple[Part, tuple[CachePair, ...]]:
    """Return a decoder's step as a source, and the pairs of its cache."""
    from demi.exporter.pytorch import generation as torch_models

    inputs = (torch_models.ids_spec(), *cache, *memory)
    pairs = tuple(CachePair(output=spec.name.replace("past_key_values", "present"), input=spec.name) for spec in cache)
    names = [LOGITS, *(pair.output for pair in pairs)]
    source = torch_models.trace(step, inputs, names, torch_models.example_tensors(inputs), options, path)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    made = (
        TensorSpec(LOGITS, DType.FP32, ("batch", vocabulary)),
        *(
            TensorSpec(pair.output, DType.FP32, (*spec.shape[:2], "seen", spec.shape[3]))
            for pair, spec in zip(pairs, cache, strict=True)
        ),
    )
    run = partial(torch_models.run_module, step, inputs, names)
    return Part(source, Tensors(inputs, made), run), pairs


def _fitted(found: Found, parts: Parts, path: Path) -> Generator:
    """Return the generator of a source; SourceError if its rules do not fit the model."""
    encoder = parts.encoder.tensors if parts.encoder else None
    try:
        return Generator(found.description, parts.decoder.tensors, encoder, found.tokenizer, str(path))
    except BundleError as error:
        raise SourceError(error.message, where=str(path), hint="check generation_config.json in the folder") from error


def _prompts(generator: Generator, parts: Parts, options: SourceOptions, rules: Rules) -> tuple[Sequence[Prompt], str]:
    """Return the prompts, and their origin if they were drawn."""
    if options.raw_samples is not None:
        return generator.prepare(read_raw(options.raw_samples, generator.inputs).part(0, MOST_PROMPTS)), ""
    vocabulary = parts.decoder.tensors.outputs[0].shape[1]
    assert isinstance(vocabulary, int)
    prompts = drawn_prompts(generator, vocabulary, options.seed, rules)
    return prompts, f"greedy generation from {len(prompts)} prompts drawn at random (seed {options.seed})"
