"""Text from anywhere as one line that nobody's terminal obeys: names in models and in requests are whatever their makers
liked, line ends and the sequences that command a terminal among it."""

from __future__ import annotations

_CODES = (
    *range(0x20),
    *range(0x7F, 0xA0),  # C1: 0x9B alone begins a command
    0x061C,
    0x200E,
    0x200F,
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),  # these and the next turn the direction of writing, and show text in another order
    *range(0x2066, 0x206A),
)

_ESCAPES = {code: repr(chr(code))[1:-1] for code in _CODES}
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _CODES if code >= 0x7F}
_SEVERAL_LINES = {code: text for code, text in _ESCAPES.items() if code not in (0x09, 0x0A)}


def one_line(text: str) -> str:
    r"""The text with `\n`, `\x1b` and their like in place of what ends a line or commands a terminal."""
    return text.translate(_ESCAPES)


def plain_lines(text: str) -> str:
    """The same for a text of several lines, which stay: for one whose lines are known to be its own."""
    return text.translate(_SEVERAL_LINES)


def json_line(text: str) -> str:
    """A JSON document in one line as the same document: JSON itself escapes less than a terminal obeys."""
    return text.translate(_JSON_ESCAPES)
