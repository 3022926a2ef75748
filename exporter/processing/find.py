"""Find the processing of a source: from its transformers folder, or from the files that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from demi.errors import BundleError, InputError, SourceError
from demi.exporter.processing.found import Found, ProcessingOptions
from demi.exporter.processing.media import audio_description, has_preprocessor, image_description
from demi.exporter.processing.tokenizer import file_tokenizer, folder_tokenizer, has_tokenizer
from demi.processing.description import (
    AnswerKind,
    ClassAnswer,
    EmbeddingAnswer,
    Function,
    Pooling,
    Processing,
    RawInput,
    ScoreAnswer,
    TextInput,
    TokenAnswer,
)
from demi.processing.processor import Processor
from demi.tensors import TensorSpec

TEXT_TASKS = frozenset({"feature-extraction", "text-classification", "token-classification", "text-pair-scoring"})
IMAGE_TASKS = frozenset({"image-classification"})
AUDIO_TASKS = frozenset({"audio-classification"})
RAW_TASKS = TEXT_TASKS | IMAGE_TASKS | AUDIO_TASKS
"""Tasks whose bundles take text, images or sound."""

TENSOR_ANSWERS = frozenset({"image-segmentation", "object-detection"})
"""Tasks with `--image-processor` whose answers are the model's own outputs: masks and boxes."""

PENDING = "?"
"""The output of an answer before the model is read, which names it."""


def find_in_folder(folder: Path, task: str | None) -> Found | None:
    """Return the processing of a transformers folder for a task; None without a task, or without files for it."""
    if task in TEXT_TASKS and has_tokenizer(folder):
        text, tokenizer = folder_tokenizer(folder, pair=task == "text-pair-scoring")
        return Found(_folder_description(folder, task or "", text), tokenizer)
    if task in IMAGE_TASKS and has_preprocessor(folder):
        return Found(_folder_description(folder, task or "", image_description(folder)))
    if task in AUDIO_TASKS and has_preprocessor(folder):
        return Found(_folder_description(folder, task or "", audio_description(folder)))
    return None


def find_in_files(options: ProcessingOptions, task: str | None) -> Found | None:
    """Return the processing that the user's options describe; None for none. Raises InputError for half of one."""
    if not options.given:
        return None
    sources = [options.tokenizer, options.image_processor, options.feature_extractor]
    if not any(sources):
        raise InputError(
            "names of classes, --max-tokens, --pooling and --normalize belong to a tokenizer, processor or extractor",
            where="--tokenizer, --image-processor, --feature-extractor",
            hint="give one of them as well; a transformers folder with a --task needs none of these options",
        )
    if len([each for each in sources if each is not None]) != 1:
        raise InputError(
            "a bundle takes one kind of raw input",
            where="--tokenizer, --image-processor, --feature-extractor",
            hint="give exactly one of them",
        )
    labels = read_labels(options.labels) if options.labels else ()
    raw: RawInput
    tokenizer = ""
    if options.tokenizer:
        raw, tokenizer = file_tokenizer(options.tokenizer, options.max_tokens, pair=task == "text-pair-scoring")
    elif options.image_processor:
        raw = image_description(options.image_processor)
    else:
        assert options.feature_extractor is not None
        raw = audio_description(options.feature_extractor)
    task = task or _task_of(raw, labels)
    if task in TENSOR_ANSWERS and options.image_processor:
        return _without_answer(raw, task, options)
    if task not in RAW_TASKS:
        known = RAW_TASKS | TENSOR_ANSWERS if options.image_processor else RAW_TASKS
        raise InputError(f"`{task}` takes no raw input", where="--task", hint=f"use one of {', '.join(sorted(known))}")
    if task.endswith("classification") and not labels:
        raise InputError(f"{task} needs the names of the classes", hint="give them with --labels FILE, one a line")
    answer = _answer(task, labels, "softmax", "sigmoid", options.pooling, normalize=options.normalize)
    return Found(Processing(raw, task, answer), tokenizer)


def _without_answer(raw: RawInput, task: str, options: ProcessingOptions) -> Found:
    """Return the processing of images whose answers are the model's outputs. Raises InputError for unused labels."""
    if options.labels:
        raise InputError(
            f"the answers of {task} are the model's outputs, without names of classes",
            where="--labels",
            hint="leave it out",
        )
    return Found(Processing(raw, task))


def fitted(found: Found, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], where: str) -> Found:
    """Return the processing with the model's own names: its output, and only the inputs that it has.

    Raises SourceError when it does not fit the model.
    """
    names = {spec.name for spec in inputs}
    raw: Any = found.description.input
    if isinstance(raw, TextInput):
        raw = msgspec.structs.replace(
            raw, mask=raw.mask if raw.mask in names else None, types=raw.types if raw.types in names else None
        )
    answer: Any = found.description.answer
    if answer is not None and outputs:
        answer = msgspec.structs.replace(answer, output=outputs[0].name)
    if isinstance(answer, EmbeddingAnswer) and outputs and len(outputs[0].shape) == 2:
        answer = msgspec.structs.replace(answer, pooling=None)  # the model pools by itself
    description = msgspec.structs.replace(found.description, input=raw, answer=answer)
    try:
        Processor(description, inputs, outputs, found.tokenizer, where)
    except BundleError as error:
        raise SourceError(
            error.message.replace("`processing.json` does not fit the bundle", "its raw inputs do not fit the model"),
            where=where,
            hint="export without --tokenizer, --image-processor and --feature-extractor to serve tensors",
        ) from error
    return Found(description, found.tokenizer)


def read_labels(path: Path) -> tuple[str, ...]:
    """Return class names from a file: one a line, a JSON list, or JSON with `id2label` or ids as keys."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        content = msgspec.json.decode(text)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise InputError(f"the labels cannot be read: {error}", where=str(path)) from error
    content = content.get("id2label", content) if isinstance(content, dict) else content
    if isinstance(content, list):
        return tuple(map(str, content))
    return labels_of(content, str(path))


def labels_of(id2label: Any, where: str) -> tuple[str, ...]:
    """Return the labels in order of their ids, which must be 0, 1, 2 and so on. Raises InputError."""
    try:
        by_id = {int(key): str(value) for key, value in id2label.items()}
    except (AttributeError, ValueError) as error:
        raise InputError("the labels are not names by id", where=where) from error
    if sorted(by_id) != list(range(len(by_id))):
        raise InputError(f"the labels have the ids {sorted(by_id)[:5]}..., not 0, 1, 2 and so on", where=where)
    return tuple(by_id[index] for index in range(len(by_id)))


def _folder_description(folder: Path, task: str, raw: RawInput) -> Processing:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    labels = labels_of(config.id2label, str(folder)) if task.endswith("classification") else ()
    pooling, normalize = sentence_pooling(folder)
    single, several = _functions(config.problem_type)
    # transformers' pipeline for sound applies softmax to one class as well
    function = "softmax" if task in AUDIO_TASKS and not config.problem_type else single if len(labels) == 1 else several
    score: Function = "none" if config.problem_type == "regression" else "sigmoid"
    return Processing(raw, task, _answer(task, labels, function, score, pooling, normalize=normalize))


def _functions(problem: str | None) -> tuple[Function, Function]:
    """Return the function for one class and for several, as transformers' pipelines choose them."""
    if problem == "regression":
        return "none", "none"
    return "sigmoid", "sigmoid" if problem == "multi_label_classification" else "softmax"


def sentence_pooling(folder: Path) -> tuple[Pooling, bool]:
    """Return the pooling of a sentence-transformers folder and whether it normalizes; the mean, unscaled, of others."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return "mean", False
    try:
        listed = msgspec.json.decode(modules.read_bytes(), type=list[dict[str, Any]])
        kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in listed]
        if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
            raise SourceError(
                f"the sentence model has a step that is not known: {unknown[0]}",
                where=str(folder),
                hint="export the whole model as a .pt2, with --tokenizer",
            )
        settings: dict[str, Any] = {}
        if "Pooling" in kinds:
            place = folder / str(listed[kinds.index("Pooling")].get("path", "1_Pooling")) / "config.json"
            if not place.resolve().is_relative_to(folder.resolve()):
                raise SourceError("modules.json names a folder outside the model's", where=str(folder))
            settings = msgspec.json.decode(place.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise SourceError(f"the pooling of the sentence model cannot be read: {error}", where=str(folder)) from error
    return _pooling(settings, folder), "Normalize" in kinds


_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


def _pooling(settings: dict[str, Any], folder: Path) -> Pooling:
    chosen = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value]
    if settings.get("pooling_mode") in ("mean", "cls", "max"):
        chosen = [name for name, mode in _MODES.items() if mode == settings["pooling_mode"]]
    if not chosen:
        return "mean"
    if len(chosen) > 1 or chosen[0] not in _MODES:
        raise SourceError(
            f"the sentence model pools with {' and '.join(chosen)}, which is not known",
            where=str(folder),
            hint="export the whole model as a .pt2, with --tokenizer",
        )
    return _MODES[chosen[0]]


def _task_of(raw: RawInput, labels: Sequence[str]) -> str:
    kind = {"TextInput": "text", "ImageInput": "image", "AudioInput": "audio"}[type(raw).__name__]
    if labels:
        return f"{kind}-classification"
    return "feature-extraction" if kind == "text" else f"{kind}-classification"


def _answer(
    task: str, labels: tuple[str, ...], function: Function, score: Function, pooling: Pooling | None, *, normalize: bool
) -> AnswerKind:
    match task:
        case "feature-extraction":
            return EmbeddingAnswer(PENDING, pooling or "mean", normalize)
        case "text-pair-scoring":
            return ScoreAnswer(PENDING, score)
        case "token-classification":
            return TokenAnswer(PENDING, labels)
        case _:
            return ClassAnswer(PENDING, labels, function)
