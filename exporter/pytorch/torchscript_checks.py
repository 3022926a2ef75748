"""TorchScript, looked at before PyTorch reads it: it is code of its own kind, and may run as soon as it is loaded.

It can compute and no more, but for a few operators and classes that know files and other machines.
"""

from __future__ import annotations

import re
from pathlib import Path

from demi.exporter.pytorch.archive_records import records

_DATA = re.compile(r"(.*/)?(data|constants|tensors)/\d+")
"""Tensors, which are never taken for code."""

_REACHES_OUT = re.compile(
    rb"(?<!\w)(save|from_file|load_tensor|rpc_sync|rpc_async|rpc_remote|dist_c10d|dist_rpc|c10d|profiler)(?!\w)"
)
"""Operators that read or write files, classes that open connections: refused wherever the word stands in code."""

_SPELT_OTHERWISE = re.compile(rb"getattr\s*\([^)]*\\")
"""An attribute whose name is written with escapes, which hides what it is."""


def unsafe_code(path: Path) -> str | None:
    """What in a TorchScript archive reaches beyond the model, in words; None where there is nothing of the kind."""
    for record in records(path):
        if not record.name.endswith((".py", ".json")) or _DATA.fullmatch(record.name):
            continue
        code = record.read()
        if match := _REACHES_OUT.search(code):
            return f"`{record.name}` uses `{match[1].decode()}`, which can reach files or other machines"
        if _SPELT_OTHERWISE.search(code):
            return f"`{record.name}` hides the name of what it uses"
    return None
