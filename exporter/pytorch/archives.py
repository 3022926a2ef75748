"""Zip archives that hold a whole program: torch.export's `.pt2` and TorchScript.

PyTorch's documentation warns against loading untrusted ones. Unless the user trusts a file, it is checked first, and
its pickles may hold only weights.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from demi.errors import SourceError
from demi.exporter.pytorch.errors import cause, load_or_raise, quiet
from demi.exporter.pytorch.example import Example
from demi.exporter.pytorch.output_types import register_unknown_types
from demi.exporter.pytorch.program_checks import unsafe_record
from demi.exporter.pytorch.torchscript_checks import unsafe_code
from demi.exporter.pytorch.weights_only import require_harmless, untrusted, weights_only

_JIT: Any = torch.jit
"""TorchScript, whose functions carry no types."""


def load_program(path: Path, *, trusted: bool = False) -> Any:
    """Load the program in a `.pt2`; SourceError when PyTorch cannot read it, or it could run code and is not trusted."""
    if not trusted:
        require_harmless(unsafe_record, path)
    register_unknown_types(path)
    if trusted:
        return load_or_raise(lambda: torch.export.load(path), path)
    with weights_only():
        return load_or_raise(lambda: _load_weights_only(path), path)


def _load_weights_only(path: Path) -> Any:
    try:
        return torch.export.load(path)
    except pickle.UnpicklingError as error:
        raise untrusted(
            "it holds a pickle with other objects than tensors, and a pickle can run any code", path
        ) from error


def load_script(path: Path, *, trusted: bool = False) -> Any:
    """Load a TorchScript archive; SourceError when PyTorch cannot read it, or its code could reach beyond the model."""
    if not trusted:
        require_harmless(unsafe_code, path)
    return load_or_raise(lambda: _JIT.load(path, map_location="cpu"), path)


def program_of_script(script: Any, example: Example, path: Path) -> Any:
    """Convert a TorchScript module to a torch.export program, since the ONNX exporter no longer accepts TorchScript."""
    from torch._export.converter import TS2EPConverter

    try:
        with quiet():
            return TS2EPConverter(script, tuple(example.kwargs.values()), {}).convert()
    except Exception as error:
        raise SourceError(
            f"PyTorch cannot turn the TorchScript into a torch.export program: {cause(error)}",
            where=str(path),
            hint="export the original module with torch.export.save instead",
        ) from error
