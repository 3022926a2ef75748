"""Where a model comes from: a reader for each kind of file, chosen by suffix and content."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from demi.bundles.archives import check_archive
from demi.errors import InputError, SampleError, SourceError
from demi.exporter.passes.containers import expose_tensors, read_proto, require_tensors
from demi.exporter.passes.defaults import hold_defaults
from demi.exporter.passes.widen import widen_source
from demi.exporter.sources import transformers_folder
from demi.exporter.sources.onnx_checker import check_file, foreign_nodes
from demi.onnx_file.contents import external_files, made_bytes, most_bytes
from demi.tensors import Feeds, TensorSpec

TABLES = "demi/tables"
"""Where a model's metadata in memory says which of its outputs were maps."""

SUFFIXES = (".pt", ".pth", ".pt2", ".safetensors", ".onnx")


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


def open_source(path: Path, options: SourceOptions) -> Source:
    """Read a model file; a PyTorch one is exported to ONNX and compared with PyTorch.

    Raises InputError for an option that means nothing to the file, and SourceError, which says what the file is and what is missing, when it cannot be read.
    """
    if not path.exists():
        raise SourceError("no such file", where=str(path), hint="give a .pt, .pt2 or .onnx file")
    if path.is_dir() and not transformers_folder.is_model_folder(path):
        raise SourceError(
            "this is a folder, and no transformers model (it has no config.json)",
            where=str(path),
            hint="give a .pt, .pt2 or .onnx file, or a folder that save_pretrained wrote",
        )
    if path.is_file():
        _check_content(path)
    if path.suffix == ".onnx":
        check_options(options, "an ONNX file", path)
        return _of_onnx(path, options)
    if path.is_file() and path.suffix not in SUFFIXES and not zipfile.is_zipfile(path):
        raise SourceError(
            "this is no model file Demi knows", where=str(path), hint=f"give one of {', '.join(SUFFIXES)}"
        )
    from demi.exporter.pytorch.read import read

    return read(path, options)


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


def _of_onnx(path: Path, options: SourceOptions) -> Source:
    """An ONNX file as a bundle can have it: constant weights, tensors at its border, everything in FP32."""
    model = read_onnx(path)
    constant = hold_defaults(model)
    exposed = expose_tensors(constant.model, options.samples[0] if options.samples else None)
    require_tensors(exposed.model, str(path))
    check_sample_names(options, [value.name or "" for value in exposed.model.graph.inputs], path)
    widened = widen_source(exposed.model)
    words = (*model.meta.get(TABLES, ()), *constant.words, *exposed.words, *widened.words)
    return Source(widened.model, "onnx", words=words, was=widened.was)


def _check_content(path: Path) -> None:
    """Raise SourceError for what lies where a model should, because a download or a checkout went another way."""
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        raise SourceError("the file is empty", where=str(path))
    if start.startswith(b"version https://git-lfs"):
        raise SourceError(
            "this is a Git LFS pointer, and the model is not here yet", where=str(path), hint="fetch it: git lfs pull"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise SourceError(
            "this is a web page, and no model", where=str(path), hint="its download may need a login or another address"
        )
    with path.open("rb") as file:
        try:
            check_archive(file)
        except zipfile.BadZipFile:
            return  # whoever reads it says what is wrong
        except ValueError as error:
            raise SourceError(
                f"the archive is not opened: {error}", where=str(path), hint="save the model again with PyTorch"
            ) from error


def read_onnx(path: Path, *, foreign: bool = False) -> ir.Model:
    """A checked ONNX model; weights kept in other files stay there until they are needed.

    With `foreign`, operators that nobody here knows are taken in ONNX's own domain, too.
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
            f"the output `{twice[0]}` is listed {names.count(twice[0])} times, and answers go by their names",
            where=str(path),
            hint="list it once, or give it another name through an Identity",
        )
    return model


NO_RUN = "if only another runtime has this operator, convert without running the model: demi export --no-run"


def require_known_operators(model: ir.Model, where: str | None = None, hint: str = NO_RUN) -> None:
    """Raise SourceError for an operator that ONNX Runtime does not have: the model cannot be run here."""
    for node in foreign_nodes(model):
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        raise SourceError(f"ONNX Runtime has no operator `{name}` (node `{node.name}`)", where=where, hint=hint)


def _load(path: Path) -> ir.Model:
    """What a file holds, with tables in place of maps; weights in other files are not read."""
    read = read_proto(onnx.load(path, load_external_data=False))
    ir.external_data.set_base_dir(read.model.graph, path.parent)
    read.model.meta[TABLES] = read.words
    return read.model


def _check_constants(path: Path) -> None:
    """Raise ValueError for a model that makes constants far larger than itself: every run would, and every session."""
    beside = {each.location for each in external_files(path)}
    held = path.stat().st_size + sum(file.stat().st_size for name in beside if (file := path.parent / name).is_file())
    if (made := made_bytes(path)) > (most := most_bytes(held)):
        raise ValueError(f"it makes constants of {made:,} bytes (at most {most:,} from {held:,})")


def _check_external(model: ir.Model) -> None:
    """Raise ValueError for weights that reach beyond the end of the file they are kept in."""
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
        return "an input or output says nothing of its shape; ONNX wants one of names and numbers, such as [batch, 4]"
    return "the file may be truncated, or its weights (external data) may be missing beside it"


def _first_cause(error: BaseException) -> str:
    """The first line of what really went wrong, which stands at the end of the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def index_limits(model: ir.Model) -> dict[str, int]:
    """For each integer input that looks up rows of a constant table (an embedding), how many rows the smallest has."""
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        sizes = [rows for node, position in _uses(value) if (rows := _table_rows(node, position))]
        if sizes:
            limits[value.name or ""] = min(sizes)
    return limits


MOVES = frozenset({"Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Transpose", "Flatten"})


def _uses(value: ir.Value) -> Sequence[tuple[ir.Node, int]]:
    """The nodes that read a value, and those that read what MOVES make of it, however long the chain."""
    found: list[tuple[ir.Node, int]] = []
    left, seen = [value], {value}
    while left:
        for use in left.pop().uses():
            found.append((use.node, use.idx))
            if use.node.op_type in MOVES and use.idx == 0 and (moved := use.node.outputs[0]) not in seen:
                seen.add(moved)
                left.append(moved)
    return found


def _table_rows(node: ir.Node, position: int) -> int | None:
    table = node.inputs[0] if node.op_type == "Gather" and position == 1 else None
    axis = node.attributes.get_int("axis", 0) if table is not None else 0
    constant = ir.convenience.get_const_tensor(table) if table is not None and axis == 0 else None
    return int(constant.shape.numpy()[0]) if constant is not None and len(constant.shape) else None
