"""Parse the path of an infer request into model name and version."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from demi.server.http.types import Target

_INFER_PATH = re.compile(rb"/v2/models/([^/?#]*)(?:/versions/([^/?#]*))?/infer")


@lru_cache(256)
def infer_target(path: bytes) -> Target | None:
    """Return model and version of an infer path, each percent-decoded once; None for any other path, or with a query.

    Segments are decoded after splitting, so that `%2F` is a slash in a name and not a separator.
    """
    match = _INFER_PATH.fullmatch(path)
    if match is None:
        return None
    name, version = match.groups()
    return _decode(name), None if version is None else _decode(version)


def _decode(segment: bytes) -> str:
    return unquote_to_bytes(segment).decode("utf-8", "replace")
