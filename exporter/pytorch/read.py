"""Read a PyTorch file as ONNX: load, export, name, verify."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from demi.errors import SourceError
from demi.exporter.passes.public_names import rename_axes, rename_inputs, rename_outputs
from demi.exporter.passes.widen import widen_source, widened_note
from demi.exporter.pytorch.archives import (
    load_program,
    load_script,
    program_of_script,
)
from demi.exporter.pytorch.example import (
    Example,
    as_feeds,
    guessed_specs,
    make_example,
    parameter_names,
)
from demi.exporter.pytorch.export import export_program
from demi.exporter.pytorch.half_weights import widen_module, widen_program
from demi.exporter.pytorch.input_dtypes import call, fit_example
from demi.exporter.pytorch.modules import load_pickle, load_safetensors
from demi.exporter.pytorch.verify import output_names, verify
from demi.exporter.sources import transformers_folder
from demi.exporter.sources.options import Source, SourceKind, SourceOptions


def read(path: Path, kind: SourceKind, options: SourceOptions) -> Source:
    """Read a PyTorch source of any kind as an ONNX model; SourceError when it cannot be loaded or exported."""
    loaded = _load(path, kind, options)
    program, module, example = loaded.program, loaded.module, loaded.example
    onnx_program = export_program(program, example, options, path)
    model = onnx_program.model
    if not model.graph.outputs:
        raise SourceError(
            "the module returns no tensor", where=str(path), hint="return the outputs of the model from forward"
        )
    names = _input_names(program, example)
    if len(names) == len(model.graph.inputs):
        rename_inputs(model, names)  # TorchScript's conversion names them x_1, and ONNX's x_orig where x is returned
    feeds = as_feeds(example, [value.name for value in model.graph.inputs], path)
    rename_axes(model, example.axes)
    rename_outputs(model, options.output_names or output_names(module, example, len(model.graph.outputs), path))
    widened = widen_source(model)  # for modules that PyTorch cannot run with FP32 weights
    error = verify(model, widened.model, module, example, feeds, path)
    drawn = example.dynamic_shapes is not None and not options.samples
    notes = (widened_note(loaded.half_types),) if loaded.half_types else widened.notes
    examples = () if drawn else (feeds,)
    return Source(widened.model, kind, examples, error, notes=notes, half_types=loaded.half_types or widened.half_types)


def _input_names(program: Any, example: Example) -> list[str]:
    """Return the names of the inputs in the source; none where they are not known."""
    if isinstance(program, torch.export.ExportedProgram) and not example.axes:
        return [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return list(example.axes)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The program to export, the module to compare with, an example call, and the half types of the weights."""

    program: Any
    module: Any
    example: Example
    half_types: tuple[str, ...]


def _load(path: Path, kind: SourceKind, options: SourceOptions) -> Loaded:
    if kind is SourceKind.PROGRAM:
        return _program(path, trusted=options.trust_pickle)
    if kind is SourceKind.TORCHSCRIPT:
        script = load_script(path, trusted=options.trust_pickle)
        example, was = _example(script, options, path)
        return Loaded(program_of_script(script, example, path), script, example, was)
    if kind is SourceKind.TRANSFORMERS:
        module = transformers_folder.load_folder(path, options.task)
        options = replace(options, inputs=options.inputs or guessed_specs(module, options.samples))
    elif kind is SourceKind.SAFETENSORS:
        module = load_safetensors(path, options)
    else:
        module = load_pickle(path, options)
    example, was = _example(module, options, path)
    return Loaded(module, module, example, was)


def _program(path: Path, *, trusted: bool) -> Loaded:
    program = load_program(path, trusted=trusted)
    if not any(program.example_inputs or ()):
        raise SourceError(
            "the exported program holds no example inputs",
            where=str(path),
            hint="save it with torch.export.save right after torch.export.export",
        )
    was = widen_program(program)
    try:
        example = _of_program(program)
        call(program.module(), example, path)
    except Exception:
        if not was:
            raise
        program, was = load_program(path), ()  # unchanged: one of its operators needs half
        example = _of_program(program)
    return Loaded(program, program.module(), example, was)


def _of_program(program: Any) -> Example:
    args, kwargs = program.example_inputs
    return Example(tuple(args), dict(kwargs), None, {})


def _example(module: Any, options: SourceOptions, path: Path) -> tuple[Example, tuple[str, ...]]:
    """Find an example call that the module runs on, with its half weights in FP32."""
    given = make_example(parameter_names(module), options, path)
    types = {spec.name: spec.dtype for spec in options.inputs if spec.name in given.kwargs}
    return widen_module(module, lambda: fit_example(module, given, types, path))
