"""Texts for clients without places on this server: where its models lie is nobody's business."""

from __future__ import annotations

import functools
import re
import sys
import tempfile
from pathlib import Path

_ROOTS = frozenset(
    "bin boot data dev etc home lib lib64 media mnt models opt private proc root run sbin srv sys tmp usr var Users".split()
)
"""First folders of paths. Nodes are called `/encoder/MatMul`, so that not every slash begins a path."""


def without_places(text: str, folder: Path | None = None) -> str:
    """The text with the last name of every path in place of the path; those in `folder` are seen whatever they hold."""
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
