"""Answers that are not finite: what is kept of the requests they belong to, and never more than that by default."""

from __future__ import annotations

import hashlib
import io
import logging
import time
import zipfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demi.files import OWNER_ALONE, check_writable, unwritable, write_bytes_whole
from demi.tensors import Array, Feeds

log = logging.getLogger("demi.server")

REMEMBERED = 100
"""How many guarded requests are remembered."""

MOST_FILES = 1000
"""How many guarded requests are written into the folder that the settings name."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """One request whose half-precision answer was not finite."""

    request_id: str
    fingerprint: str
    when_ms: int
    outputs: tuple[str, ...]
    """The outputs that were not finite in half."""
    repaired: bool
    """Whether FP32 answered with finite values."""


class Guard:
    """Remembers the requests that half precision could not answer; belongs to the event loop's thread.

    Inputs are kept as a fingerprint only, unless a folder is given: then the arrays themselves are written there, one
    `.npz` a request, at most `MOST_FILES`.
    """

    def __init__(self, keep_in: Path | None = None) -> None:
        self.guarded: deque[Guarded] = deque(maxlen=REMEMBERED)
        self.reruns = 0
        self.unrepaired = 0
        self._keep_in = keep_in

    def note(self, request_id: str, feeds: Feeds, outputs: frozenset[str], *, repaired: bool) -> Guarded:
        """Remember one request, and count whether FP32 could answer it."""
        self.reruns += repaired
        self.unrepaired += not repaired
        guarded = Guarded(request_id, fingerprint(feeds), now_ms(), tuple(sorted(outputs)), repaired)
        self.guarded.append(guarded)
        return guarded

    def keep(self, guarded: Guarded, feeds: Feeds) -> None:
        """Write a request's inputs where the settings say so; may be called on any thread. Failures are logged."""
        if self._keep_in is None:
            return
        try:
            write_inputs(self._keep_in, guarded.fingerprint, feeds)
        except OSError as error:
            log.warning("the inputs of a guarded request cannot be kept in %s: %s", self._keep_in, error)


def fingerprint(feeds: Mapping[str, Array]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        values = feeds[name]
        digest.update(f"{name}:{values.dtype}:{values.shape}\n".encode())
        digest.update(repr(values.tolist()).encode() if values.dtype.kind == "O" else np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]


def require_folder(folder: Path) -> None:
    """Make the folder for guarded inputs; InputError where nothing can be written there, told before one is lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    check_writable(folder / "inputs.npz")


def write_inputs(folder: Path, name: str, feeds: Feeds) -> None:
    """Write inputs to `NAME.npz` in a folder, for its owner alone, whole or not at all; nothing where it is full."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.npz"
    if target.exists() or sum(1 for _ in folder.glob("*.npz")) >= MOST_FILES:
        return
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:  # numpy.savez has arguments that an input may be named as
        for key, values in feeds.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                plain = values.astype(str) if values.dtype.kind == "O" else values
                np.lib.format.write_array(member, plain, allow_pickle=False)
    write_bytes_whole(target, written.getbuffer(), OWNER_ALONE)


def same_non_finite(half: Feeds, fp32: Feeds, names: frozenset[str]) -> bool:
    """Whether these outputs are NaN and infinite in the same elements in FP32: then half is not to blame."""
    return all(
        half[name].shape == fp32[name].shape
        and np.array_equal(np.isnan(half[name]), np.isnan(fp32[name]))
        and np.array_equal(np.isinf(half[name]), np.isinf(fp32[name]))
        for name in names
    )


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
