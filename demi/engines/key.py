"""The key that never leaves a machine, and the seals it makes: what carries one was made here.

A seal is HMAC-SHA256 (RFC 2104) under a random key in a file that nobody else may write or read. Machines that are to
trust each other's engines, such as the containers of one deployment, share the file.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from demi.errors import InputError

DEFAULT = Path("~/.config/demi/engine.key")
KEY_BYTES = 32


def key_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the key is: what `DEMI_ENGINE_KEY` says, or a file in the user's configuration."""
    return Path(environ.get("DEMI_ENGINE_KEY") or DEFAULT)


def read_key(path: Path) -> bytes | None:
    """The key in a file, or None where there is no such file; InputError when others could have written or read it."""
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
            "the engine key is no secret: others can read or write it, or own it",
            where=str(path),
            hint="chown it to yourself and chmod 600, or remove it and build engines again",
        )
    if len(key) < KEY_BYTES:
        raise InputError("the engine key is too short", where=str(path), hint="remove it and build engines again")
    return key


def make_key(path: Path) -> bytes:
    """The key in a file, made with fresh random bytes, for its owner alone, where there is none."""
    if (key := read_key(path)) is not None:
        return key
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
    except FileExistsError:  # somebody else has just made it
        pass
    key = read_key(path)
    assert key is not None
    return key


def seal_of(content: bytes, key: bytes) -> str:
    """The seal of some bytes, in hexadecimal."""
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def is_sealed(content: bytes, seal: str, key: bytes) -> bool:
    """Whether a seal is the one that this key makes of these bytes, told in constant time."""
    return hmac.compare_digest(seal_of(content, key).encode(), seal.encode())
