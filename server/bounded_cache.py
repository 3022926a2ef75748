"""Eviction of caches that are dicts: the oldest entries make room for new ones."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def keep_newest(known: dict[K, V], key: K, value: V, most: int) -> None:
    """Store an entry in a dict of at most `most`, evicting the oldest while it is full."""
    while len(known) >= most:
        del known[next(iter(known))]
    known[key] = value
