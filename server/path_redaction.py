"""Redact file paths in text for clients: the server's folders are none of their business."""

from __future__ import annotations

import functools
import re
import sys
import tempfile
from pathlib import Path

_ROOTS = frozenset(
    "bin boot data dev etc home lib lib64 media mnt models opt private proc root run sbin srv sys tmp usr var Users".split()
)
"""Top-level folders that mark a path. Not every slash does: node names look like `/encoder/MatMul`."""


def redact_paths(text: str, folder: Path | None = None) -> str:
    """Replace each absolute path by its last component; paths below `folder` are found whatever characters they contain."""
    if "/" not in text:
        return text
    for path in (str(folder), str(folder.resolve())) if folder else ():
        text = text.replace(path.rstrip("/") + "/", "").replace(path, Path(path).name)
    return _paths().sub(lambda match: match[1], text)


@functools.cache
def _paths() -> re.Pattern[str]:
    own = [Path.cwd(), Path.home(), Path(sys.prefix), Path(__file__), Path(tempfile.gettempdir())]
    roots = _ROOTS | {path.resolve().parts[1] for path in own if len(path.resolve().parts) > 1}
    names = "|".join(sorted(map(re.escape, roots)))
    return re.compile(rf"(?<![\w.-])/(?:{names})(?:/[^\s\"'`,;:()\[\]<>|]*)?/([^\s\"'`,;:()\[\]<>|/]*)")
