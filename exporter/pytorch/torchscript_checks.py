"""Check TorchScript before PyTorch reads it: it is code, and may run as soon as it is loaded.

TorchScript can only compute, except for a few operators and classes that access files and other machines.
"""

from __future__ import annotations

import re
from pathlib import Path

from demi.exporter.pytorch.archive_records import records

_DATA = re.compile(r"(.*/)?(data|constants|tensors)/\d+")
"""Tensor records, which are never read as code."""

_REACHES_OUT = re.compile(
    rb"(?<!\w)(save|from_file|load_tensor|rpc_sync|rpc_async|rpc_remote|dist_c10d|dist_rpc|c10d|profiler)(?!\w)"
)
"""Operators that read or write files, and classes that open connections: refused wherever the name occurs in code."""

_SPELT_OTHERWISE = re.compile(rb"getattr\s*\([^)]*\\")
"""An attribute whose name is written with escapes, which would hide it from this check."""


def unsafe_code(path: Path) -> str | None:
    """Return what in a TorchScript archive reaches beyond the model; None where nothing does."""
    for record in records(path):
        if not record.name.endswith((".py", ".json")) or _DATA.fullmatch(record.name):
            continue
        code = record.read()
        if match := _REACHES_OUT.search(code):
            return f"`{record.name}` uses `{match[1].decode()}`, which can reach files or other machines"
        if _SPELT_OTHERWISE.search(code):
            return f"`{record.name}` hides the name of what it uses"
    return None
