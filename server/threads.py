"""Work that is too long for the event loop goes to another thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

OFF_LOOP_BYTES = 65536
"""Bodies beyond this are read and written in another thread: 150,000 numbers of JSON take 10 ms."""

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises, without holding up the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, work)
