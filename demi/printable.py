"""Names, paths and other programs' words, made fit for a terminal or a log: they may neither command it nor begin a line of it."""

from __future__ import annotations

import re

_BIDIRECTIONAL = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that turn the order of what follows, so that a line reads as another."""

_LINES = (0x2028, 0x2029)
"""Line ends that some programs know, and others do not."""

_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), *_LINES, *_BIDIRECTIONAL)}
_JSON = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 0x7F}
_COMMAND = re.compile(r"^(\s*)(::|##\[)")


def printable(text: str) -> str:
    r"""Text in one line, with every character that controls a terminal written as Python would: `\n`, `\x1b`."""
    return text.translate(_CONTROLS)


def printable_lines(text: str, indent: str = "") -> str:
    """Text of several lines, each printable, and all but the first behind an indent.

    A line that GitHub would take for a command of the workflow (`::error::`) is not one any more.
    """
    first, *others = (_COMMAND.sub(r"\1\\\2", printable(line)) for line in text.split("\n"))
    return "\n".join([first, *(indent + line.strip() if indent else line for line in others)])


def printable_json(document: str) -> str:
    """JSON whose strings hold no characters that control a terminal; below a space, JSON escapes them anyway."""
    return document.translate(_JSON)
