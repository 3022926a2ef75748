"""Export with PyTorch's ONNX exporter, with fallbacks and hints where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from demi.errors import SourceError
from demi.exporter.pytorch.errors import cause, quiet
from demi.exporter.pytorch.example import Example
from demi.exporter.pytorch.recurrent_shapes import PROJECTION, without_unrolling
from demi.exporter.pytorch.rnn_translation import rnn_translations
from demi.exporter.sources import transformers_folder
from demi.exporter.sources.options import SourceOptions, check_sample_names


def export_program(program: Any, example: Example, options: SourceOptions, path: Path) -> Any:
    """Return the ONNX program; where the exporter fails on fused attention, try the model's eager attention."""
    if isinstance(program, torch.export.ExportedProgram) and not example.axes:
        names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
        check_sample_names(options, names, path)
    try:
        return _exported(program, example, options, path)
    except SourceError:
        if not transformers_folder.use_eager_attention(program):
            raise
        return _exported(program, example, options, path)


def _exported(program: Any, example: Example, options: SourceOptions, path: Path) -> Any:
    """`torch.onnx.export(dynamo=True)`; outputs are named later, in `rename_outputs`."""
    is_program = isinstance(program, torch.export.ExportedProgram)
    try:
        with quiet(), without_unrolling():
            result = torch.onnx.export(
                program,
                () if is_program else example.args,
                kwargs=None if is_program else example.kwargs,
                dynamic_shapes=None if is_program else example.dynamic_shapes,
                opset_version=options.opset,
                dynamo=True,
                verbose=False,
                optimize=True,
                custom_translation_table=rnn_translations(),
            )
    except Exception as error:
        raise SourceError(
            f"PyTorch cannot export the model to ONNX: {cause(error)}",
            where=str(path),
            hint=_export_hint(error, options),
        ) from error
    if result is None:
        raise SourceError("PyTorch's exporter returned nothing", where=str(path))
    return result


def _export_hint(error: BaseException | None, options: SourceOptions) -> str:
    """Return a hint: use attention that the exporter supports, give samples if there are none, else see PyTorch's trace."""
    while error is not None:
        if "scaled_dot_product" in str(error):
            return "write attention without scaled_dot_product_attention (transformers: attn_implementation='eager')"
        if PROJECTION in str(error):
            return "train it without proj_size and with a torch.nn.Linear behind it, or write its steps with torch.nn.LSTMCell"
        if "data-dependent" in str(error) or "guard on" in str(error):
            return (
                "the model's path depends on its values or sizes: give fixed sizes with --input, export it yourself with "
                "torch.export and torch._check, or export the parts that do not depend on them"
            )
        error = error.__cause__
    trace = "run with --verbose for PyTorch's full trace; torch.onnx.export fails in the same way"
    return trace if options.samples else f"{trace}; give representative inputs with --sample"
