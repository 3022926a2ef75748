"""Fingerprints that identify a request's inputs without storing them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from demi.tensors import Array

DIGITS = 16
"""Hexadecimal digits of a fingerprint: 64 bits, enough to tell the requests of one server apart."""


def fingerprint(feeds: Mapping[str, Array]) -> str:
    """Return the first `DIGITS` hexadecimal digits of the SHA-256 of all names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        values = feeds[name]
        digest.update(f"{name}:{values.dtype}:{values.shape}\n".encode())
        digest.update(repr(values.tolist()).encode() if values.dtype.kind == "O" else np.ascontiguousarray(values).data)
    return digest.hexdigest()[:DIGITS]
