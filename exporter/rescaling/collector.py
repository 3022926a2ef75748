"""Python's garbage collector, paused while graphs are copied and programs are built.

Both make many objects in a short time, for which the collector visits all of the model's again and again: a fifth of the
time for 2,000 nodes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """While the block runs, collect no cycles; what it leaves is collected afterwards, if that was on before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
