"""A model's source: what the user says about it, and what was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from demi.errors import InputError, SampleError
from demi.tensors import Feeds, TensorSpec


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the user says about a source beside its path. Raises InputError for an input that is given twice."""

    samples: tuple[Feeds, ...] = ()
    """Example inputs, from `--sample`."""
    inputs: tuple[TensorSpec, ...] = ()
    """Input specs, from `--input`."""
    output_names: tuple[str, ...] = ()
    factory: str | None = None
    """`package.module:factory`, which builds the module a state_dict belongs to."""
    trust_pickle: bool = False
    task: str | None = None
    """What a folder of transformers is for, from `--task`."""
    opset: int | None = None
    seed: int = 0
    own_names: bool = False
    """Whether samples must go by the model's own names, which is looked at before anything slow."""

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.inputs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"the input `{twice[0]}` is given {names.count(twice[0])} times", hint="give it once")


@dataclass(frozen=True, slots=True)
class Source:
    """An FP32 ONNX model, and the example inputs that came with it (none for a plain `.onnx`)."""

    model: ir.Model
    kind: str
    examples: tuple[Feeds, ...] = ()
    export_error: float | None = None
    """Relative L2 between the ONNX model and PyTorch, where PyTorch made it."""
    words: tuple[str, ...] = ()
    """What was done to it on the way, for people."""
    warnings: tuple[str, ...] = ()
    """What it says of itself that is not so, for people."""
    was: tuple[str, ...] = ()
    """The half types that its weights had, if they became FP32."""


FLAGS = {
    "inputs": "--input",
    "output_names": "--output-names",
    "factory": "--model",
    "trust_pickle": "--trust-pickle",
    "task": "--task",
    "opset": "--opset",
}
"""The options that say what a source leaves open, and their spelling."""


TAKES = {
    "an ONNX file": frozenset[str](),
    "a transformers folder": frozenset({"inputs", "output_names", "task", "opset"}),
    "a torch.export program": frozenset({"output_names", "trust_pickle", "opset"}),
    "a TorchScript archive": frozenset({"inputs", "output_names", "trust_pickle", "opset"}),
    "a file of tensors": frozenset({"inputs", "output_names", "factory", "opset"}),
    "a pickled module": frozenset({"inputs", "output_names", "trust_pickle", "opset"}),
}
"""Which of them mean something to each kind of source."""


def check_options(options: SourceOptions, kind: str, path: Path) -> None:
    """Raise InputError for an option that means nothing to this kind of source: it is not ignored in silence."""
    for name, flag in FLAGS.items():
        if getattr(options, name) and name not in TAKES[kind]:
            raise InputError(f"{flag} means nothing for {kind}", where=str(path), hint=f"leave {flag} out")


def check_sample_names(options: SourceOptions, names: Sequence[str], path: Path) -> None:
    """Raise SampleError for a set of samples without one of the inputs, if they must go by the model's own names."""
    for feeds in options.samples if options.own_names else ():
        for name in names:
            if name not in feeds:
                raise SampleError(
                    f"input `{name}` is missing from the samples; there is {', '.join(feeds) or 'nothing'}",
                    where=str(path),
                    hint=f"the model's inputs are {', '.join(names)}: name the arrays so",
                )
