"""The environment of a Python process that imports what this one imports."""

from __future__ import annotations

import os
import sys


def same_imports() -> dict[str, str]:
    """Return this process's environment with its `sys.path` as PYTHONPATH; `""` becomes the current folder."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
