"""Follow an address: a thread that brings new versions while a server runs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from demi.bundles.stamps import cache_folder
from demi.errors import DemiError
from demi.remote.address import Address
from demi.remote.cache import Cache
from demi.remote.fetch import Say, fetch_models

log = logging.getLogger("demi.remote")


@contextlib.contextmanager
def local_models(models: Path | Address, watch_s: float, say: Say = log.info) -> Iterator[Path]:
    """Yield a folder with these models: the path itself, or what is at the address, followed every `watch_s` seconds.

    Raises what `fetch_models` raises; 0 seconds mean that the address is read once.
    """
    if isinstance(models, Path):
        yield models
        return
    cache = Cache(cache_folder())
    folder = fetch_models(models, cache, say)
    with following(models, cache, watch_s, log.info, log.warning) if watch_s else contextlib.nullcontext():
        yield folder


@contextlib.contextmanager
def following(address: Address, cache: Cache, every_s: float, say: Say, warn: Callable[[str], None]) -> Iterator[None]:
    """Fetch the models of the address again and again during the block.

    A failure is reported and leaves the models as they are; the next attempt may succeed.
    """
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(every_s):
            try:
                fetch_models(address, cache, say)
            except DemiError as error:
                warn(f"{address}: {error.message}")

    thread = threading.Thread(target=follow, name="demi-remote", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1.0)
