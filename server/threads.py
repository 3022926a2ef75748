"""Run work that would block the event loop in another thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

OFF_LOOP_BYTES = 65536
"""Larger bodies are parsed and written in another thread: 150,000 numbers of JSON take 10 ms."""

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in another thread; return or raise what it returns or raises."""
    return await asyncio.get_running_loop().run_in_executor(None, work)
