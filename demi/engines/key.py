"""The engine key of this machine, and seals made with it: a valid seal shows that an engine was built here.

A seal is HMAC-SHA256 (RFC 2104) under a random key, in a file that only its owner can read. Machines that trust each
other's engines, such as the containers of one deployment, share the file.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from demi.errors import InputError

DEFAULT = Path("~/.config/demi/engine.key")
KEY_BYTES = 32

log = logging.getLogger("demi.runtime")


def key_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the key: `DEMI_ENGINE_KEY`, or a file in the user's configuration."""
    return Path(environ.get("DEMI_ENGINE_KEY") or DEFAULT)


def read_key(path: Path) -> bytes | None:
    """Read the key; None where the file does not exist. Raises InputError when others could read or write it."""
    path = path.expanduser()
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = file.read(1024)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"the engine key cannot be read: {error.strerror or error}", where=str(path)) from error
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise InputError(
            "the engine key is not secret: other users can read or write it, or own it",
            where=str(path),
            hint="chown it to yourself and chmod 600, or remove it and build engines again",
        )
    if len(key) < KEY_BYTES:
        raise InputError("the engine key is too short", where=str(path), hint="remove it and build engines again")
    return key


def make_key(path: Path) -> bytes:
    """Return the key in a file; a file that does not exist is created with random bytes, readable by its owner only."""
    if (key := read_key(path)) is not None:
        return key
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        log.info("created this machine's key, which signs its engines and proofs: %s", path)
    except FileExistsError:  # another process has just created it
        pass
    key = read_key(path)
    assert key is not None
    return key


def seal_of(content: bytes, key: bytes) -> str:
    """Return the seal of some bytes, in hexadecimal."""
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def is_sealed(content: bytes, seal: str, key: bytes) -> bool:
    """Return whether this key makes this seal of these bytes; compared in constant time."""
    return hmac.compare_digest(seal_of(content, key).encode(), seal.encode())
