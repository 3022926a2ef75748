"""The options for a model's source, the kinds of source, and the model that was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import onnx_ir as ir

from demi.errors import InputError, SampleError
from demi.exporter.generation.samples import Trial
from demi.exporter.processing.found import Found, ProcessingOptions
from demi.tensors import Feeds, TensorSpec


class SourceKind(Enum):
    """Kind of model source; the value is its name in error messages."""

    ONNX = "an ONNX file"
    TRANSFORMERS = "a transformers folder"
    PROGRAM = "a torch.export program"
    TORCHSCRIPT = "a TorchScript archive"
    SAFETENSORS = "a file of tensors"
    PICKLE = "a PyTorch pickle"
    """A module, or the weights of one: only reading it shows which."""
    PICKLED_MODULE = "a pickled module"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options for a source besides its path. Raises InputError for an input that is given twice."""

    samples: tuple[Feeds, ...] = ()
    """Example inputs, from `--sample`."""
    raw_samples: str | None = None
    """A file or folder of texts, images or sounds, from `--sample`; they become `samples` once the source is known."""
    processing: ProcessingOptions = field(default_factory=ProcessingOptions)
    """Files that describe how texts, images or sounds become inputs, if the source does not."""
    inputs: tuple[TensorSpec, ...] = ()
    """Input specs, from `--input`."""
    output_names: tuple[str, ...] = ()
    factory: str | None = None
    """`package.module:factory`, which builds the module of a state_dict."""
    trust_pickle: bool = False
    task: str | None = None
    """The task of a transformers model, from `--task`."""
    opset: int | None = None
    seed: int = 0
    drawn_from: str = ""
    """Origin of `samples` that the user has not given, but that follow from drawn prompts; else empty."""
    own_names: bool = False
    """True if samples must use the model's own input names, which is checked before anything slow."""

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.inputs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"the input `{twice[0]}` is given {names.count(twice[0])} times", hint="give it once")


@dataclass(frozen=True, slots=True)
class Source:
    """An FP32 ONNX model, and the example inputs that came with it (none for a plain `.onnx`)."""

    model: ir.Model
    kind: SourceKind
    examples: tuple[Feeds, ...] = ()
    export_error: float | None = None
    """Relative L2 between the ONNX model and PyTorch, where PyTorch made it."""
    notes: tuple[str, ...] = ()
    """Sentences for users on what was changed while reading."""
    warnings: tuple[str, ...] = ()
    """Sentences for users on wrong declarations in the source."""
    half_types: tuple[str, ...] = ()
    """The half types of its weights, if they were converted to FP32."""
    processing: Found | None = None
    """Description of its raw inputs and answers; None for tensors alone."""
    encoder: Source | None = None
    """The encoder of a decoder that has one, which becomes a bundle in the decoder's; its examples are its samples."""
    trial: Trial | None = None
    """Texts to generate in FP32 and in half, for a decoder."""
    half_names: frozenset[str] = frozenset()
    """Inputs and outputs that are half in an FP16 bundle: the cache of a generator."""


FLAGS = {
    "inputs": "--input",
    "output_names": "--output-names",
    "factory": "--model",
    "trust_pickle": "--trust-pickle",
    "task": "--task",
    "opset": "--opset",
}
"""The options that not every kind of source takes, and their command-line flags."""

TAKES = {
    SourceKind.ONNX: frozenset[str](),
    SourceKind.TRANSFORMERS: frozenset({"inputs", "output_names", "task", "opset"}),
    SourceKind.PROGRAM: frozenset({"output_names", "trust_pickle", "opset"}),
    SourceKind.TORCHSCRIPT: frozenset({"inputs", "output_names", "trust_pickle", "opset"}),
    SourceKind.SAFETENSORS: frozenset({"inputs", "output_names", "factory", "opset"}),
    SourceKind.PICKLE: frozenset({"inputs", "output_names", "factory", "trust_pickle", "opset"}),
    SourceKind.PICKLED_MODULE: frozenset({"inputs", "output_names", "trust_pickle", "opset"}),
}
"""The options that each kind of source takes."""


def check_options(options: SourceOptions, kind: SourceKind, path: Path) -> None:
    """Raise InputError for an option that this kind of source does not take, rather than ignore it."""
    for name, flag in FLAGS.items():
        if name == "task" and options.processing.given:
            continue  # the task of the raw inputs
        if getattr(options, name) and name not in TAKES[kind]:
            raise InputError(f"{flag} means nothing for {kind.value}", where=str(path), hint=f"leave {flag} out")


def check_sample_names(options: SourceOptions, names: Sequence[str], path: Path) -> None:
    """Raise SampleError for a set of samples that lacks an input, if they must use the model's own names."""
    for feeds in options.samples if options.own_names else ():
        for name in names:
            if name not in feeds:
                raise SampleError(
                    f"input `{name}` is missing from the samples; there is {', '.join(feeds) or 'nothing'}",
                    where=str(path),
                    hint=f"the model's inputs are {', '.join(names)}: use these names for the arrays",
                )
