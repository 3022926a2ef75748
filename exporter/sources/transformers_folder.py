"""A Hugging Face model folder on disk: its module, and what its inputs look like. Nothing is ever fetched.

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
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
    "object-detection": "AutoModelForObjectDetection",
    "semantic-segmentation": "AutoModelForSemanticSegmentation",
}
"""What `--task` may say, and the class of transformers that loads it."""


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a transformers model."""
    return (path / "config.json").is_file()


def load_folder(path: Path, task: str | None) -> Any:
    """The module in eval mode. Without a task, the architecture the folder names is loaded.

    Raises SourceError when the folder is incomplete or its task cannot be told, PackageError without transformers.
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
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _cannot_load(path, first) from error
    if model.state_dict() and len(found["missing_keys"]) >= len(model.state_dict()):
        raise _cannot_load(path, "not one of its weights is the model's")  # which would be random numbers
    model.config.use_cache = False
    return model.eval()


def _has_pickled_weights_alone(path: Path) -> bool:
    """Whether a folder's weights are `pytorch_model.bin`, in one piece or several, and nothing else."""
    return not any(path.glob("*.safetensors")) and any(path.glob("pytorch_model*.bin"))


def _cannot_load(path: Path, why: str) -> SourceError:
    return SourceError(
        f"transformers cannot load the folder: {why}",
        where=str(path),
        hint="it must hold config.json and model.safetensors, or a pytorch_model.bin of nothing but tensors",
    )


@contextlib.contextmanager
def _no_progress_bars(transformers: Any) -> Iterator[None]:
    """While the block runs, transformers draws no progress of its own into ours."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_config(path: Path) -> dict[str, Any]:
    """The folder's config.json; SourceError for one that is no object, or names code to fetch."""
    try:
        config = msgspec.json.decode((path / "config.json").read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"config.json cannot be read: {error}", where=str(path)) from error
    for key in ("attn_implementation", "_attn_implementation"):
        if "/" in str(config.get(key, "")):
            raise SourceError(
                f"config.json wants code that is not in transformers: `{key}` is {str(config[key])[:80]!r}",
                where=str(path),
                hint=f"take `{key}` out of config.json: Demi fetches nothing, and runs no code of a folder",
            )
    return config


def _architecture(path: Path, config: Mapping[str, Any], transformers: Any) -> Any:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise SourceError(
            "the folder does not say what kind of model it holds",
            where=str(path),
            hint=f"name it with --task: {', '.join(TASKS)}",
        )
    return found


def use_eager_attention(model: Any) -> bool:
    """Have a model of transformers compute attention in plain products; whether it did otherwise, and can."""
    fused = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if fused in (None, "eager") or not hasattr(model, "set_attn_implementation"):
        return False
    try:
        model.set_attn_implementation("eager")
    except (ValueError, NotImplementedError):
        return False
    return True


def input_specs(model: Any) -> tuple[TensorSpec, ...]:
    """The inputs a model of text or images takes; empty when its configuration does not tell."""
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
    """Whether these are so many positive integers: a configuration may hold anything."""
    return (
        isinstance(sizes, list | tuple)
        and len(sizes) == count
        and all(type(each) is int and each > 0 for each in sizes)
    )
