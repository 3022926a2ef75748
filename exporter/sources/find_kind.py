"""Find what kind of model source a path holds, from its suffix and content."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from demi.bundles.archives import check_archive
from demi.errors import SourceError
from demi.exporter.sources.options import SourceKind
from demi.exporter.sources.transformers_folder import is_model_folder

SUFFIXES = (".pt", ".pth", ".pt2", ".safetensors", ".onnx")

_PROGRAM_ENTRY = re.compile(r"(^|/)(archive_format|serialized_exported_program\.json|models/.*\.json)$")
_TORCHSCRIPT_ENTRY = re.compile(r"(^|/)constants\.pkl$")


def find_kind(path: Path) -> SourceKind:
    """Return the kind of an existing file or folder; SourceError for anything that Demi cannot read a model from."""
    if path.is_dir():
        if is_model_folder(path):
            return SourceKind.TRANSFORMERS
        raise SourceError(
            "this folder is not a transformers model (it has no config.json)",
            where=str(path),
            hint="give a .pt, .pt2 or .onnx file, or a folder that save_pretrained wrote",
        )
    _check_content(path)
    if path.suffix == ".onnx":
        return SourceKind.ONNX
    is_zip = zipfile.is_zipfile(path)
    if path.suffix not in SUFFIXES and not is_zip:
        raise SourceError(
            "this is not a model file that Demi knows", where=str(path), hint=f"give one of {', '.join(SUFFIXES)}"
        )
    names = _entries(path) if is_zip else []
    if any(_PROGRAM_ENTRY.search(name) for name in names):
        return SourceKind.PROGRAM
    if any(_TORCHSCRIPT_ENTRY.search(name) for name in names):
        return SourceKind.TORCHSCRIPT
    return SourceKind.SAFETENSORS if path.suffix == ".safetensors" else SourceKind.PICKLE


def _entries(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _check_content(path: Path) -> None:
    """Raise SourceError for an empty file, and for what a failed checkout or download leaves in place of a model."""
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        raise SourceError("the file is empty", where=str(path))
    if start.startswith(b"version https://git-lfs"):
        raise SourceError(
            "this is a Git LFS pointer; the model itself was not downloaded",
            where=str(path),
            hint="download it: git lfs pull",
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise SourceError(
            "this is a web page, not a model",
            where=str(path),
            hint="its download may need a login or another address",
        )
    with path.open("rb") as file:
        try:
            check_archive(file)
        except zipfile.BadZipFile:
            return  # the reader of this kind of file raises a better error
        except ValueError as error:
            raise SourceError(
                f"the archive is not safe to open: {error}",
                where=str(path),
                hint="save the model again with PyTorch",
            ) from error
