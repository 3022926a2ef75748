"""The id of a request: the client's own, or one that is made; under it the log tells what went wrong."""

from __future__ import annotations

import random
import re

HEADER = "x-request-id"
_HEADER = HEADER.encode()
_FIT = re.compile(r"[!-~]{1,128}")


def fit_id(text: str) -> str:
    """An id that a client sent, where it is fit for a header and a line of the log: printable ASCII, no spaces, up to 128
    characters; empty for any other."""
    return text if _FIT.fullmatch(text) else ""


def make_id() -> str:
    """A new id of 12 hexadecimal digits."""
    return f"{random.getrandbits(48):012x}"


def sent_id(headers: dict[bytes, bytes]) -> str:
    """The id in the request's `x-request-id`; empty where there is none that is fit."""
    return fit_id(headers[_HEADER].decode("latin-1")) if _HEADER in headers else ""
