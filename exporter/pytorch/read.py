"""A PyTorch file to ONNX: read, export, name, verify."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from demi.errors import SourceError
from exporter import transformers_source
from exporter.passes.outputs import rename_axes, rename_inputs, rename_outputs
from exporter.pytorch.archives import is_exported_program, is_torchscript, load_program, load_script, program_of_script
from exporter.pytorch.example import Example, as_feeds, guessed_specs, make_example, parameter_names
from exporter.pytorch.export import export_program
from exporter.pytorch.modules import load_module
from exporter.pytorch.verify import output_names, verify
from exporter.source import Source, SourceOptions, check_options


def read(path: Path, options: SourceOptions) -> Source:
    """The ONNX model of a `.pt2`, TorchScript, pickled module or state_dict; SourceError when it cannot be had."""
    program, module, example = _load(path, options)
    onnx_program = export_program(program, example, options, path)
    model = onnx_program.model
    if not model.graph.outputs:
        raise SourceError(
            "the module returns no tensor", where=str(path), hint="return what the model shall answer from forward"
        )
    names = _input_names(program, example)
    if len(names) == len(model.graph.inputs):
        rename_inputs(model, names)  # TorchScript's conversion calls them x_1, and ONNX's x_orig where x is returned
    feeds = as_feeds(example, [value.name for value in model.graph.inputs], path)
    rename_axes(model, example.axes)
    rename_outputs(model, options.output_names or output_names(module, example, len(model.graph.outputs)))
    error = verify(model, module, example, feeds, path)
    drawn = example.dynamic_shapes is not None and not options.samples
    return Source(model, _kind(program), () if drawn else (feeds,), error)


def _input_names(program: Any, example: Example) -> list[str]:
    """What the inputs are called where they come from; none where that is not known."""
    if isinstance(program, torch.export.ExportedProgram) and not example.axes:
        return [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return list(example.axes)


def _load(path: Path, options: SourceOptions) -> tuple[Any, Any, Example]:
    """What to export, what to compare with, and an example call."""
    if path.is_dir():
        check_options(options, "a transformers folder", path)
        module = transformers_source.load_folder(path, options.task)
        specs = options.inputs or guessed_specs(module, options.samples)
        return module, module, make_example(parameter_names(module), replace(options, inputs=specs), path)
    if is_exported_program(path):
        check_options(options, "a torch.export program", path)
        program = load_program(path)
        args, kwargs = program.example_inputs or ((), {})
        if not args and not kwargs:
            raise SourceError(
                "the exported program holds no example inputs",
                where=str(path),
                hint="save it with torch.export.save right after torch.export.export",
            )
        return program, program.module(), Example(tuple(args), dict(kwargs), None, {})
    if is_torchscript(path):
        check_options(options, "a TorchScript archive", path)
        script = load_script(path)
        example = make_example(parameter_names(script), options, path)
        return program_of_script(script, example, path), script, example
    module = load_module(path, options)
    example = make_example(parameter_names(module), options, path)
    return module, module, example


def _kind(program: Any) -> str:
    return "torch.export program" if isinstance(program, torch.export.ExportedProgram) else "PyTorch module"
