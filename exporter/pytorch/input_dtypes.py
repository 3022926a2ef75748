"""Find the input types that a module takes, by calling it.

`np.random.rand` and lists of numbers are float64, ids are often saved as int32, and a module needs its own types. A
`.pt` file does not record them, so they are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demi.errors import SourceError
from demi.exporter.pytorch.errors import cause
from demi.exporter.pytorch.example import Example, parameter_names
from demi.tensors import DType

INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32})
"""Integers that some operators, such as gather and one-hot, need as int64."""

Cast = Callable[[torch.Tensor], torch.Tensor]


def call(module: Any, example: Example, path: Path) -> Any:
    """Call a module on an example; SourceError, with PyTorch's message and the inputs' types, where it fails."""
    try:
        with torch.no_grad():
            return module(*example.args, **example.kwargs)
    except Exception as error:
        raise SourceError(
            f"the model does not run on the example inputs: {cause(error)}",
            where=str(path),
            hint=_advice(module, example),
        ) from error


def _advice(module: Any, example: Example) -> str:
    """Return what to do about a module that does not run on its example inputs."""
    lacking = [name for name in list(parameter_names(module))[len(example.args) :] if name not in example.kwargs]
    others = f", and the model also takes {', '.join(lacking[:6])}" if lacking else ""
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):  # of transformers
        return (
            "export an encoder with a decoder for generation, with --task text2text-generation or automatic-speech-recognition; "
            f"for a single step give all inputs with --sample: the examples are {_shown(example)}{others}"
        )
    return f"they are {_shown(example)}{others}; give others with --sample, or set their types with --input"


def fit_example(module: Any, example: Example, types: Mapping[str, DType], path: Path) -> Example:
    """Return the example in types that the module runs on: floats in its own type, integers unchanged or as int64.

    `types` were set by the user and stay. Raises the SourceError of the first attempt when none succeeds.
    """
    own = float_type(module)
    stated = {name: _torch_type(dtype) for name, dtype in types.items()}

    def tried(floats: Cast, integers: Cast) -> Example:
        def fitted(name: str, value: Any) -> Any:
            cast = (lambda tensor: tensor.to(stated[name])) if name in stated else lambda t: integers(floats(t))
            return map_tensors(value, cast)

        return replace(example, kwargs={name: fitted(name, value) for name, value in example.kwargs.items()})

    # FP32 first where the module's weights are half: its code may convert on its own.
    types_of_floats = [_to(torch.float32)] if own in (torch.float16, torch.bfloat16) else []
    candidates = [
        tried(floats, integers) for floats in (*types_of_floats, _to(own), _same) for integers in (_same, _long)
    ]
    first: SourceError | None = None
    for candidate in candidates:
        try:
            call(module, candidate, path)
        except SourceError as error:
            first = first or error
        else:
            return candidate
    assert first is not None
    raise first


def float_type(module: Any) -> torch.dtype:
    """Return the float type of a module's parameters, else of its buffers, else FP32."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point():
                dtype: torch.dtype = tensor.dtype
                return dtype
    return torch.float32


def map_tensors(value: Any, cast: Cast) -> Any:
    """Return `value` with `cast` applied to every tensor in it, however nested."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, cast, value)


def _to(dtype: torch.dtype) -> Cast:
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


def _long(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.long() if tensor.dtype in INTEGERS else tensor


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _torch_type(dtype: DType) -> torch.dtype:
    if dtype is DType.BF16:
        return torch.bfloat16
    return torch.from_numpy(np.zeros(1, dtype.numpy)).dtype


def _shown(example: Example) -> str:
    leaves = [
        (name, leaf)
        for name, value in [*((f"input {i}", each) for i, each in enumerate(example.args)), *example.kwargs.items()]
        for leaf in torch.utils._pytree.tree_leaves(value)
        if isinstance(leaf, torch.Tensor)
    ]
    return ", ".join(f"`{name}` {str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}" for name, leaf in leaves)
