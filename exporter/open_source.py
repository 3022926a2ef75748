"""Where a model comes from: a reader for each kind of file, chosen by suffix and content."""

from __future__ import annotations

import zipfile
from pathlib import Path

from demi.bundles.archives import check_archive
from demi.errors import SourceError
from demi.exporter.passes.containers import expose_tensors, require_tensors
from demi.exporter.passes.defaults import hold_defaults
from demi.exporter.passes.widen import widen_source
from demi.exporter.sources import transformers_folder
from demi.exporter.sources.onnx_file import TABLES, read_onnx
from demi.exporter.sources.options import Source, SourceOptions, check_options, check_sample_names

SUFFIXES = (".pt", ".pth", ".pt2", ".safetensors", ".onnx")


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
