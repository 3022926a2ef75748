"""A model in OpenVINO's own format with weights in FP16: its file is mapped, so that no process owns the weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from demi.errors import SourceError
from demi.runtime.openvino.compression import compress
from demi.runtime.openvino.failures import reason
from demi.runtime.openvino.session import require_openvino

GRAPH, WEIGHTS = ".xml", ".bin"
"""Suffixes of the two files."""


def write_stored(model: Path, path: Path) -> bool:
    """Write an ONNX file in OpenVINO's format, as `path` with each suffix; False, and nothing, where a weight is too large.

    Raises SourceError where OpenVINO cannot read the model or write the files.
    """
    ov = require_openvino()
    try:
        graph = ov.Core().read_model(str(model))
        if not compress(graph):
            return False
        ov.save_model(graph, str(path.with_suffix(GRAPH)), compress_to_fp16=False)
    except (RuntimeError, OSError) as error:
        raise SourceError(f"OpenVINO cannot store the model: {reason(error)}", where=str(model)) from error
    return True


def digest_of(path: Path) -> str:
    """Return one SHA-256 over those of both files; OSError where one is missing."""
    both = hashlib.sha256()
    for suffix in (GRAPH, WEIGHTS):
        with path.with_suffix(suffix).open("rb") as file:
            both.update(hashlib.file_digest(file, "sha256").digest())
    return both.hexdigest()
