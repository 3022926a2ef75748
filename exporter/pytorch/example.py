"""The example call of a module that the exporter traces."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demi.calibration.samples import draw_samples
from demi.errors import SourceError
from demi.exporter.sources import transformers_folder
from demi.exporter.sources.free_axes import best_example, freed, freed_specs
from demi.exporter.sources.options import SourceOptions, check_sample_names
from demi.tensors import Array, Dim, Feeds, TensorSpec


@dataclass(frozen=True, slots=True)
class Example:
    """The arguments of an example call, and which axes are free."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    axes: dict[str, tuple[int | str, ...]]
    """For each input, the names of its free axes where the user gave them."""


def parameter_names(module: Any) -> dict[str, bool]:
    """Return the parameter names of a module's `forward`, in order, and whether each is required."""
    if isinstance(module, torch.jit.ScriptModule):
        method: Any = module.forward
        return {argument.name: not argument.has_default_value() for argument in method.schema.arguments[1:]}
    return {
        name: parameter.default is parameter.empty
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def guessed_specs(module: Any, samples: Sequence[Feeds]) -> tuple[TensorSpec, ...]:
    """Return the inputs that follow from a transformers configuration, with axes free where samples vary."""
    taken = parameter_names(module)
    found = [spec for spec in transformers_folder.input_specs(module) if spec.name in taken]
    if samples:
        found = [spec for spec in found if any(spec.name in feeds for feeds in samples)]
    return freed_specs(found, samples)


def make_example(parameters: Mapping[str, bool], options: SourceOptions, path: Path) -> Example:
    """Build an example call from `--sample` and `--input`; a single input may have any name.

    Axes in which the samples differ are free. Raises SourceError where inputs are missing or have other names.
    """
    specs = {spec.name: spec for spec in options.inputs}
    samples = [dict(feeds) for feeds in options.samples]
    if specs and not samples:
        samples = [dict(draw_samples(options.inputs, options.seed, sets=1, batch=2).feeds[0])]
    if not samples:
        first = next(iter(parameters), "x")
        needed = [name for name, is_required in parameters.items() if is_required] or [first]  # labels, say, are not
        raise SourceError(
            "it holds a model but no example inputs, which the export needs",
            where=str(path),
            hint=f"give --sample inputs.npz, written with numpy.savez('inputs.npz', {first}=array), or --input for each of: "
            f"{', '.join(needed)} (--input {first}:float32[batch,784] for rows, {first}:float32[batch,3,224,224] for images)",
        )
    given = list(dict.fromkeys([name for feeds in samples for name in feeds] + list(specs)))
    if not any(name in parameters for name in given) and len(given) == 1 and parameters:
        only, first = given[0], next(iter(parameters))
        samples = [{first: feeds[only]} for feeds in samples]
        specs = {first: specs[only]} if only in specs else {}
    _check_names(parameters, samples, specs, path)
    samples = [{name: feeds[name] for name in parameters if name in feeds} for feeds in samples]
    example = _dynamic_example(best_example(samples), specs, samples)
    check_sample_names(options, list(example.kwargs), path)
    return example


def _check_names(
    parameters: Mapping[str, bool], samples: Sequence[Feeds], specs: Mapping[str, TensorSpec], path: Path
) -> None:
    """Raise SourceError for inputs that the model does not take, and for missing required ones."""
    takes = f"the model takes {', '.join(parameters)}"
    given = list(dict.fromkeys(name for feeds in samples for name in feeds))
    if not any(name in parameters for name in given):
        raise SourceError(f"none of the inputs {', '.join(given)} is one the model takes", where=str(path), hint=takes)
    if unknown := [name for name in specs if name not in parameters]:
        raise SourceError(f"--input names `{unknown[0]}`, which the model does not take", where=str(path), hint=takes)
    if missing := [name for name, needed in parameters.items() if needed and name not in given]:
        others = ", ".join(name for name in given if name not in parameters)
        raise SourceError(
            f"the input `{missing[0]}` is missing" + (f"; there is {others}, which it does not take" if others else ""),
            where=str(path),
            hint=takes,
        )


def _dynamic_example(feeds: Feeds, specs: Mapping[str, TensorSpec], samples: Sequence[Feeds]) -> Example:
    """Free the batch axis of every input, the axes `--input` names and those in which samples differ.

    An axis of size 1 would be exported as a constant, so the exporter must see two rows.
    """
    shared_batch = all(
        len({array.shape[0] for array in each.values() if array.ndim}) == 1 for each in (feeds, *samples)
    )
    kwargs, shapes, axes = {}, {}, {}
    for name, array in feeds.items():
        if array.dtype.kind in "SUO":
            raise SourceError(
                f"input `{name}` holds {array.dtype}, which PyTorch tensors cannot hold", where="--sample"
            )
        dims = _dims(name, array, feeds, specs, samples, shared_batch)
        kwargs[name] = torch.from_numpy(_lengthened(array, dims))
        shapes[name] = {axis: torch.export.Dim.AUTO for axis, dim in enumerate(dims) if isinstance(dim, str)}
        axes[name] = dims
    return Example((), kwargs, shapes, axes)


def _dims(
    name: str,
    array: Array,
    feeds: Feeds,
    specs: Mapping[str, TensorSpec],
    samples: Sequence[Feeds],
    shared_batch: bool,
) -> tuple[Dim, ...]:
    """Return the dimensions of an input: as in `--input`; else as those of an input that looks the same; else learned."""
    spec = specs.get(name)
    if spec and len(spec.shape) == array.ndim:
        return spec.shape
    for other in specs.values():
        if other.name in feeds and (feeds[other.name].shape, feeds[other.name].dtype) == (array.shape, array.dtype):
            return freed(name, other.shape, samples)  # token type ids have the shape of the input ids
    dims: tuple[Dim, ...] = array.shape
    if not spec and array.ndim and shared_batch:
        dims = ("batch", *dims[1:])
    return freed(name, dims, samples)


def _lengthened(array: Array, dims: Sequence[Dim]) -> Array:
    """Return the array, repeated along every free axis of size 1; zeros, two along every free axis, if it is empty."""
    if not array.ndim:
        return array.copy()
    if not array.size:
        free = [2 if isinstance(dim, str) and size < 2 else size for dim, size in zip(dims, array.shape, strict=True)]
        return np.zeros(free, array.dtype)
    repeats = [2 if isinstance(dim, str) and size == 1 else 1 for dim, size in zip(dims, array.shape, strict=True)]
    return np.tile(array, repeats)


def as_feeds(example: Example, names: list[str | None], path: Path) -> Feeds:
    """Return the example's tensors by ONNX input name, in order."""
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
    """Return a tensor as an array; bfloat16, which NumPy lacks, as float32."""
    array: Array = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).detach().cpu().numpy()
    return array
