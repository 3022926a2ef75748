"""Storage of guarded requests' inputs: one `.npz` file per request in the folder given with `--keep-guarded`."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np

from demi.files import OWNER_ALONE, check_writable, unwritable, write_bytes_whole
from demi.tensors import Feeds

log = logging.getLogger("demi.server")

MAX_FILES = 1000
"""Files written into the folder at most, so that a model that always overflows cannot fill the disk."""


def require_folder(folder: Path) -> None:
    """Create the folder. Raise InputError at startup, before any input is lost, if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    check_writable(folder / "inputs.npz")


def save_inputs(folder: Path, name: str, feeds: Feeds) -> None:
    """Write inputs to `NAME.npz`, and log a warning if that fails. Safe to call on any thread."""
    try:
        write_inputs(folder, name, feeds)
    except OSError as error:
        log.warning("the inputs of a guarded request cannot be written to %s: %s", folder, error)


def write_inputs(folder: Path, name: str, feeds: Feeds) -> None:
    """Write inputs to `NAME.npz` atomically, readable by its owner only.

    Does nothing if the file exists or the folder holds `MAX_FILES` files. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.npz"
    if target.exists() or sum(1 for _ in folder.glob("*.npz")) >= MAX_FILES:
        return
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:  # numpy.savez fails on an input named like one of its parameters
        for key, values in feeds.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                plain = values.astype(str) if values.dtype.kind == "O" else values
                np.lib.format.write_array(member, plain, allow_pickle=False)
    write_bytes_whole(target, written.getbuffer(), OWNER_ALONE)
