"""A Hugging Face model folder on disk: load its module, and derive its input specs. Nothing is downloaded.

Weights are read from safetensors, else from `pytorch_model.bin` with `weights_only`, and no code of the folder is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from demi.errors import SourceError, missing_package
from demi.exporter.pytorch.weights_only import weights_only
from demi.tensors import DType, TensorSpec

TASKS = {
    "features": "AutoModel",
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "text-pair-scoring": "AutoModelForSequenceClassification",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    "image-classification": "AutoModelForImageClassification",
    "object-detection": "AutoModelForObjectDetection",
    "semantic-segmentation": "AutoModelForSemanticSegmentation",
    "audio-classification": "AutoModelForAudioClassification",
}
"""The values of `--task`, and the transformers class that loads each."""


def is_model_folder(path: Path) -> bool:
    """Return whether a folder holds a transformers model."""
    return (path / "config.json").is_file()


def load_folder(path: Path, task: str | None) -> Any:
    """Load the module in eval mode. Without a task, the architecture named in the folder is loaded.

    Raises SourceError when the folder is incomplete or its task is not known, PackageError without transformers.
    """
    try:
        import transformers
    except ImportError as error:
        raise missing_package("transformers", "examples") from error
    if task is not None and task not in TASKS:
        raise SourceError(f"unknown task `{task}`", where="--task", hint=f"use one of {', '.join(TASKS)}")
    config = _read_config(path)
    loader = getattr(transformers, TASKS[task]) if task else _architecture(path, config, transformers)
    try:
        with _no_progress_bars(transformers), weights_only():
            model, found = loader.from_pretrained(
                str(path),
                local_files_only=True,
                use_safetensors=not _has_pickled_weights_alone(path),
                weights_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:
        if task and (fitting := _tasks_of(config, transformers)) and task not in fitting:
            raise SourceError(
                f"transformers has no model of the type `{config['model_type']}` for {task}",
                where=str(path),
                hint=f"use one of its tasks with --task: {', '.join(fitting)}",
            ) from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _cannot_load(path, first) from error
    if model.state_dict() and len(found["missing_keys"]) >= len(model.state_dict()):
        raise _cannot_load(path, "none of its weights belong to the model")  # which would be random numbers
    model.config.use_cache = False
    return model.eval()


def _tasks_of(config: Mapping[str, Any], transformers: Any) -> list[str]:
    """Return the tasks for which transformers has a model of a folder's type; none for a type that it does not know."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        return []
    known = transformers.CONFIG_MAPPING[kind]
    return [task for task, name in TASKS.items() if known in getattr(transformers, name)._model_mapping]


def _has_pickled_weights_alone(path: Path) -> bool:
    """Return whether a folder's only weights are `pytorch_model.bin`, in one file or several."""
    return not any(path.glob("*.safetensors")) and any(path.glob("pytorch_model*.bin"))


def _cannot_load(path: Path, why: str) -> SourceError:
    return SourceError(
        f"transformers cannot load the folder: {why}",
        where=str(path),
        hint="it must hold config.json and model.safetensors, or a pytorch_model.bin with only tensors",
    )


@contextlib.contextmanager
def _no_progress_bars(transformers: Any) -> Iterator[None]:
    """Disable the progress bars of transformers while the block runs; they would garble ours."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_config(path: Path) -> dict[str, Any]:
    """Read the folder's config.json; SourceError for one that is not an object, or that names code to download."""
    try:
        config = msgspec.json.decode((path / "config.json").read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"config.json cannot be read: {error}", where=str(path)) from error
    for key in ("attn_implementation", "_attn_implementation"):
        if "/" in str(config.get(key, "")):
            raise SourceError(
                f"config.json requires code that is not in transformers: `{key}` is {str(config[key])[:80]!r}",
                where=str(path),
                hint=f"remove `{key}` from config.json: Demi downloads nothing and runs no code from a folder",
            )
    return config


def _architecture(path: Path, config: Mapping[str, Any], transformers: Any) -> Any:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise SourceError(
            "the folder does not name the kind of its model",
            where=str(path),
            hint=f"name it with --task: {', '.join(TASKS)}",
        )
    return found


def use_eager_attention(model: Any) -> bool:
    """Switch a transformers model to eager attention; return False if it was eager already or cannot switch."""
    fused = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if fused in (None, "eager") or not hasattr(model, "set_attn_implementation"):
        return False
    try:
        model.set_attn_implementation("eager")
    except (ValueError, NotImplementedError):
        return False
    return True


def input_specs(model: Any) -> tuple[TensorSpec, ...]:
    """Return the inputs of a text or image model; empty when its configuration does not define them."""
    config = model.config
    if getattr(model, "main_input_name", "") == "input_ids":
        names = ("input_ids", "attention_mask")
        return tuple(TensorSpec(name, DType.INT64, ("batch", "sequence")) for name in names)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    sides: Any = [size, size] if isinstance(size, int) else size
    if getattr(model, "main_input_name", "") == "pixel_values" and _are_sizes(sides, 2) and _are_sizes([channels], 1):
        return (TensorSpec("pixel_values", DType.FP32, ("batch", channels, *sides)),)
    return ()


def _are_sizes(sizes: Any, count: int) -> bool:
    """Return whether these are `count` positive integers: a configuration may hold anything."""
    return (
        isinstance(sizes, list | tuple)
        and len(sizes) == count
        and all(type(each) is int and each > 0 for each in sizes)
    )
