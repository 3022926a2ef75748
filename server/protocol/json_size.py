"""Estimate the memory that a JSON text takes once parsed, from its bytes alone, before parsing.

An empty list is two bytes of text and sixty of memory, and a few compressed kilobytes can contain millions of them.
"""

from __future__ import annotations

from demi.server.errors import BodyTooLargeError

_WEIGHTS = {b",": 32, b'"': 16, b"[": 96, b"{": 256, b":": 64}
"""Bytes of memory for each delimiter: a number in a list, half a string, a list, an object, and each member of one."""

_MOST_PER_BYTE = 96
"""Upper bound per byte of text, reached by `{},` repeated."""


def check_weight(text: bytes, most: int) -> None:
    """Raise BodyTooLargeError if the values of a JSON text could take more than `most` bytes of memory.

    Delimiters inside strings count too. Short texts are not counted, since they cannot exceed the limit.
    """
    if len(text) * _MOST_PER_BYTE > most and weigh(text) > most:
        raise too_heavy(most)


def weigh(text: bytes) -> int:
    """Return an upper bound in bytes for the values of a JSON text, without the characters of its strings."""
    return sum(weight * text.count(sign) for sign, weight in _WEIGHTS.items())


def too_heavy(most: int) -> BodyTooLargeError:
    """Return the error for a request with too many values."""
    return BodyTooLargeError(
        f"the values of the request would take more than {most} bytes of memory",
        hint="send tensors as bytes; the server's limit is --max-parsed",
    )
