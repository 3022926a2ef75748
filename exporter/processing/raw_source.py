"""Read a source that takes raw inputs: find its processing, turn raw samples into tensors, and fit both to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import onnx_ir as ir

from demi.calibration.raw_data import read_raw, sets_of
from demi.calibration.samples import MOST_SETS
from demi.errors import InputError
from demi.exporter.generation.descriptions import TASKS as GENERATING_TASKS
from demi.exporter.generation.source import read_generator
from demi.exporter.open_source import open_source
from demi.exporter.processing.find import AUDIO_TASKS, RAW_TASKS, TEXT_TASKS, find_in_files, find_in_folder, fitted
from demi.exporter.processing.found import Found
from demi.exporter.sources.graph_specs import graph_specs
from demi.exporter.sources.options import Source, SourceKind, SourceOptions
from demi.exporter.sources.transformers_folder import is_model_folder
from demi.processing.description import AudioInput, ImageInput, LogMelInput, TextInput
from demi.processing.processor import Processor, raw_names
from demi.tensors import DType, Feeds, TensorSpec


def read_source(path: Path, options: SourceOptions) -> tuple[Source, SourceOptions]:
    """Return the source, with the processing for its bundle, and the options with samples as tensors.

    A source without raw inputs is read as `open_source` reads it. Raises as that does, and SourceError for processing
    that does not fit the model.
    """
    if options.task in GENERATING_TASKS and path.is_dir() and is_model_folder(path):
        return read_generator(path, options)
    found = _find(path, options)
    if found is None:
        if options.raw_samples is not None:
            raise InputError(
                "the samples are texts, images or sounds, but the model takes tensors",
                where=options.raw_samples,
                hint="name its tokenizer with --tokenizer (or --image-processor, --feature-extractor), or its --task",
            )
        source = open_source(path, options)
        return replace(source, notes=(*source.notes, *_takes_tensors(path, options))), options
    names = _expected_inputs(found)
    if options.raw_samples is not None:
        options = replace(options, samples=tuple(_sample_feeds(found, names, options.raw_samples)))
    elif options.task in AUDIO_TASKS and not options.samples:
        raise InputError("sound cannot be drawn at random", where="--sample", hint="give a folder of WAV or FLAC files")
    asked = options
    if is_model_folder(path) and not options.inputs and not options.samples:
        asked = replace(options, inputs=names)
    source = open_source(path, asked)
    if source.kind is SourceKind.TRANSFORMERS and options.task in RAW_TASKS:
        keep_first_output(source.model)
    graph = source.model.graph
    return replace(
        source, processing=fitted(found, graph_specs(graph.inputs), graph_specs(graph.outputs), str(path))
    ), options


def _takes_tensors(path: Path, options: SourceOptions) -> tuple[str, ...]:
    """Return a note for a transformers folder whose task takes raw inputs, but which has no files for them."""
    if options.task not in RAW_TASKS or not is_model_folder(path):
        return ()
    kind = "tokenizer" if options.task in TEXT_TASKS else "preprocessor_config.json"
    return (
        f"the folder holds no {kind}, so the bundle takes tensors only; save it next to the model with "
        "save_pretrained and export again for one that takes texts, images or sounds",
    )


def keep_first_output(model: ir.Model) -> None:
    """Drop the outputs that the answer does not read, such as a BERT's pooled one; `prepare` removes their nodes."""
    del model.graph.outputs[1:]


def _find(path: Path, options: SourceOptions) -> Found | None:
    given = find_in_files(options.processing, options.task)
    if given is not None:
        return given
    return find_in_folder(path, options.task) if path.is_dir() and is_model_folder(path) else None


def _sample_feeds(found: Found, names: Sequence[TensorSpec], source: str) -> list[Feeds]:
    without_answer = msgspec.structs.replace(found.description, answer=None)
    processor = Processor(without_answer, names, (), found.tokenizer, source)
    return sets_of(read_raw(source, raw_names(found.description)), processor, MOST_SETS)


def _expected_inputs(found: Found) -> tuple[TensorSpec, ...]:
    """Return the inputs that the processing fills, before the model is known."""
    match found.description.input:
        case TextInput() as text:
            names = [name for name in (text.ids, text.mask, text.types) if name]
            return tuple(TensorSpec(name, DType.INT64, ("batch", "sequence")) for name in names)
        case ImageInput() as image:
            return (TensorSpec(image.pixels, DType.FP32, _image_shape(image)),)
        case AudioInput() as audio:
            mask = (TensorSpec(audio.mask, DType.INT64, ("batch", "samples")),) if audio.mask else ()
            return (TensorSpec(audio.samples, DType.FP32, ("batch", "samples")), *mask)
        case LogMelInput() as sound:
            return (TensorSpec(sound.features, DType.FP32, ("batch", sound.bands, sound.samples // sound.hop)),)


def _image_shape(image: ImageInput) -> tuple[int | str, ...]:
    sides: tuple[int | str, int | str] = ("height", "width")
    if image.crop:
        sides = image.crop
    elif image.resize and image.resize.height and image.resize.width:
        sides = (image.resize.height, image.resize.width)
    channels = len(image.mode)
    return ("batch", channels, *sides) if image.channels == "first" else ("batch", *sides, channels)
