"""Decode small JSON bodies: every request except inference."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from demi.server.errors import RequestError

T = TypeVar("T")


def decode_json(body: bytes, kind: type[T], *, empty: T | None = None, hint: str = "") -> T:
    """Decode a JSON body into a msgspec type; a body without content is `empty`, if given.

    Raises RequestError, with the hint, if the body is not JSON or does not have this type.
    """
    if empty is not None and not body.strip():
        return empty
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise not_the_protocol(error, hint) from error


_MISSING = re.compile(r"Object missing required field `(\w+)`(?: - at `\$\.?(.*)`)?")
"""msgspec's message for a member that is not there."""


def not_the_protocol(error: Exception, hint: str = "") -> RequestError:
    """Return the error for a request whose structure is wrong."""
    if missing := _MISSING.fullmatch(str(error)):
        name, place = missing.groups()
        owner = f"`{place}` of the request" if place else "the request"
        return RequestError(f"{owner} has no `{name}`", hint=hint or "see /docs")
    return RequestError(f"the request does not follow the protocol: {error}", hint=hint)
