"""An example call of a module, which shows the exporter its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.samples import draw_samples
from demi.errors import SourceError
from demi.tensors import Array, Feeds, TensorSpec
from exporter.source import SourceOptions


@dataclass(frozen=True, slots=True)
class Example:
    """A call of the model that shows the exporter its inputs."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    axes: dict[str, tuple[int | str, ...]]
    """For each input, the names of its free axes where the user gave them."""


def parameter_names(module: Any) -> list[str]:
    """The names of what a module's `forward` takes."""
    if isinstance(module, torch.jit.ScriptModule):
        method: Any = module.forward
        return [argument.name for argument in method.schema.arguments if argument.name != "self"]
    return [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def make_example(parameters: list[str], options: SourceOptions, path: Path) -> Example:
    """An example call from `--sample` and `--input`; a single unnamed input may go by any name."""
    specs = {spec.name: spec for spec in options.inputs}
    feeds = dict(options.samples[0]) if options.samples else {}
    if specs and not feeds:
        feeds = draw_samples(options.inputs, options.seed, sets=1, batch=2).feeds[0]
    if not feeds:
        raise SourceError(
            "the file holds a model but no example inputs, which the export needs",
            where=str(path),
            hint=f"give --sample inputs.npz, or --input for each of: {', '.join(parameters)} (e.g. --input {parameters[0] if parameters else 'x'}:float32[batch,784])",
        )
    known = {name: feeds[name] for name in parameters if name in feeds}
    if not known and len(feeds) == 1 and parameters:
        only = next(iter(feeds))
        known = {parameters[0]: feeds[only]}
        specs = {parameters[0]: specs[only]} if only in specs else {}
    if not known:
        raise SourceError(
            f"none of the inputs {', '.join(feeds)} is one the model takes",
            where=str(path),
            hint=f"the model takes {', '.join(parameters)}",
        )
    return _dynamic_example(known, specs)


def _dynamic_example(feeds: Feeds, specs: Mapping[str, TensorSpec]) -> Example:
    """Free the batch axis of every input (and the axes `--input` names); examples of one row become two.

    An axis of size 1 would be exported as a constant, so the exporter must see two rows.
    """
    shared_batch = len({array.shape[0] for array in feeds.values() if array.ndim}) == 1
    kwargs, shapes, axes = {}, {}, {}
    for name, array in feeds.items():
        if array.dtype.kind in "SUO":
            raise SourceError(f"input `{name}` holds {array.dtype}, which PyTorch has no tensors of", where="--sample")
        spec = specs.get(name)
        dims: tuple[int | str, ...] = spec.shape if spec and len(spec.shape) == array.ndim else array.shape
        if not spec and array.ndim and shared_batch:
            dims = ("batch", *dims[1:])
        repeats = [2 if isinstance(dim, str) and size == 1 else 1 for dim, size in zip(dims, array.shape, strict=True)]
        kwargs[name] = torch.from_numpy(np.tile(array, repeats) if array.ndim else array.copy())
        shapes[name] = {axis: torch.export.Dim.AUTO for axis, dim in enumerate(dims) if isinstance(dim, str)}
        axes[name] = dims
    return Example((), kwargs, shapes, axes)


def as_feeds(example: Example, names: list[str | None], path: Path) -> Feeds:
    """The example's tensors by ONNX input name, in order."""
    flat = [
        leaf
        for leaf in torch.utils._pytree.tree_leaves((example.args, example.kwargs))
        if isinstance(leaf, torch.Tensor)
    ]
    if len(flat) != len(names):
        raise SourceError(
            f"the model takes {len(flat)} tensors, but {len(names)} became ONNX inputs",
            where=str(path),
            hint="inputs that are not tensors, or that the model does not use, cannot be exported",
        )
    return {str(name): as_numpy(tensor) for name, tensor in zip(names, flat, strict=True)}


def as_numpy(tensor: torch.Tensor) -> Array:
    """A tensor's numbers; bfloat16, which NumPy lacks, as float32."""
    array: Array = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).detach().cpu().numpy()
    return array
