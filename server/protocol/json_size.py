"""How much memory the values of a JSON text will take, from its bytes alone: a bound that holds before anything is parsed.

A list without elements is two bytes of text, and sixty of memory; a body of some kilobytes, unpacked, holds millions.
"""

from __future__ import annotations

from demi.server.errors import BodyTooLargeError

_WEIGHTS = {b",": 32, b'"': 16, b"[": 96, b"{": 256, b":": 64}
"""Bytes of memory behind each sign: of a number in its list, half a text, a list, an object, and each of its members."""

_MOST_PER_BYTE = 96
"""`{},` again and again is the heaviest text there is, for its length."""


def check_weight(text: bytes, most: int) -> None:
    """Raise BodyTooLargeError where the values of a JSON text could take more than `most` bytes.

    Commas and brackets inside of strings count as well. What is short is not counted at all, since it cannot be too much.
    """
    if len(text) * _MOST_PER_BYTE > most and weigh(text) > most:
        raise too_heavy(most)


def weigh(text: bytes) -> int:
    """Bytes of memory that the values in a JSON text take at most, the characters of its strings aside."""
    return sum(weight * text.count(sign) for sign, weight in _WEIGHTS.items())


def too_heavy(most: int) -> BodyTooLargeError:
    """The error for a request whose values are too many."""
    return BodyTooLargeError(
        f"the values of the request would take more than {most} bytes of memory",
        hint="send tensors as bytes; the server's limit is --max-parsed",
    )
