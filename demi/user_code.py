"""Import of user functions, given as `package.module:function`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Put the current folder first on the import path, where scripts, unlike `python -m`, do not have it."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
