"""Read and check ONNX files."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from demi.errors import SourceError
from demi.exporter.passes.containers import read_proto
from demi.exporter.sources.onnx_checker import check_file, foreign_nodes
from demi.onnx_file.contents import external_files, made_bytes, most_bytes

TABLES = "demi/tables"
"""Metadata key of a model in memory: sentences on the outputs that were maps."""


def read_onnx(path: Path, *, foreign: bool = False) -> ir.Model:
    """Read and check an ONNX model; external weights stay in their files until they are needed.

    With `foreign`, unknown operators in ONNX's own domain are allowed. Raises SourceError with the reason when it is
    not valid.
    """
    try:
        _check_constants(path)
        model = _load(path)
        if not model.graph.outputs:
            raise ValueError("it has no graph outputs")
        check_file(path, model, foreign=foreign)
        _check_external(model)
    except Exception as error:
        raise SourceError(
            f"this is not a valid ONNX model: {(cause := _first_cause(error))}", where=str(path), hint=_hint(cause)
        ) from error
    names = [value.name for value in model.graph.outputs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SourceError(
            f"the output `{twice[0]}` is listed {names.count(twice[0])} times, but outputs are identified by name",
            where=str(path),
            hint="list it once, or add an Identity with another name",
        )
    return model


NO_RUN = "if only another runtime has this operator, convert without running the model: demi export --no-run"


def require_known_operators(model: ir.Model, where: str | None = None, hint: str = NO_RUN) -> None:
    """Raise SourceError for an operator that ONNX Runtime does not have: the model cannot be run here."""
    for node in foreign_nodes(model):
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        raise SourceError(f"ONNX Runtime has no operator `{name}` (node `{node.name}`)", where=where, hint=hint)


def _load(path: Path) -> ir.Model:
    """Load a file with tables in place of maps; external weights are not read."""
    read = read_proto(onnx.load(path, load_external_data=False))
    ir.external_data.set_base_dir(read.model.graph, path.parent)
    read.model.meta[TABLES] = read.notes
    return read.model


def _check_constants(path: Path) -> None:
    """Raise ValueError for a model that generates constants far larger than itself, in every session."""
    beside = {each.location for each in external_files(path)}
    held = path.stat().st_size + sum(file.stat().st_size for name in beside if (file := path.parent / name).is_file())
    if (made := made_bytes(path)) > (most := most_bytes(held)):
        raise ValueError(f"it creates constants of {made:,} bytes (at most {most:,} from {held:,})")


def _check_external(model: ir.Model) -> None:
    """Raise ValueError for external weights that reach beyond the end of their file."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            held = Path(tensor.path).stat().st_size
            if (tensor.offset or 0) + tensor.nbytes > held:
                raise ValueError(f"`{name}` reaches beyond the {held:,} bytes of {tensor.location}: it was cut off")


def _hint(cause: str) -> str:
    if cause.startswith("No Op registered for"):
        return NO_RUN
    if cause.startswith("Field 'shape'"):
        return "an input or output has no shape; ONNX requires one of names and numbers, such as [batch, 4]"
    return "the file may be truncated, or its weights (external data) may be missing"


def _first_cause(error: BaseException) -> str:
    """Return the first line of the first cause, which is at the end of the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
