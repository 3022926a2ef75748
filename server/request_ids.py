"""Request ids: the client's own or a generated one. Errors in the log carry them."""

from __future__ import annotations

import random
import re

HEADER = "x-request-id"
_HEADER = HEADER.encode()
_VALID = re.compile(r"[!-~]{1,128}")


def valid_id(text: str) -> str:
    """Return a client's id if it is safe in a header and a log line (up to 128 printable ASCII characters, no spaces), else
    an empty string."""
    return text if _VALID.fullmatch(text) else ""


def make_id() -> str:
    """Return a new id of 12 hexadecimal digits."""
    return f"{random.getrandbits(48):012x}"


def sent_id(headers: dict[bytes, bytes]) -> str:
    """Return the id in the `x-request-id` header; empty if there is none or it is not valid."""
    return valid_id(headers[_HEADER].decode("latin-1")) if _HEADER in headers else ""
