"""Open a model source: find its kind, check the options for it, and read it with the reader of that kind."""

from __future__ import annotations

from pathlib import Path

from demi.errors import SourceError
from demi.exporter.passes.containers import expose_tensors, require_tensors
from demi.exporter.passes.input_defaults import defaults_to_constants
from demi.exporter.passes.widen import widen_source
from demi.exporter.sources.find_kind import find_kind
from demi.exporter.sources.onnx_file import TABLES, read_onnx
from demi.exporter.sources.options import Source, SourceKind, SourceOptions, check_options, check_sample_names


def open_source(path: Path, options: SourceOptions) -> Source:
    """Read a model file; a PyTorch one is exported to ONNX and compared with PyTorch.

    Raises InputError for an option that this kind of source does not take, and SourceError, which says what the file is
    and what is missing, when it cannot be read.
    """
    if not path.exists():
        raise SourceError("no such file", where=str(path), hint="give a .pt, .pt2 or .onnx file")
    kind = find_kind(path)
    check_options(options, kind, path)
    if kind is SourceKind.ONNX:
        return _read_onnx_source(path, options)
    from demi.exporter.pytorch.read import read

    return read(path, kind, options)


def _read_onnx_source(path: Path, options: SourceOptions) -> Source:
    """Read an ONNX file into the form a bundle needs: constant weights, tensor inputs and outputs, all in FP32."""
    model = read_onnx(path)
    constant = defaults_to_constants(model)
    exposed = expose_tensors(constant.model, options.samples[0] if options.samples else None)
    require_tensors(exposed.model, str(path))
    check_sample_names(options, [value.name or "" for value in exposed.model.graph.inputs], path)
    widened = widen_source(exposed.model)
    notes = (*model.meta.get(TABLES, ()), *constant.notes, *exposed.notes, *widened.notes)
    return Source(widened.model, SourceKind.ONNX, notes=notes, half_types=widened.half_types)
