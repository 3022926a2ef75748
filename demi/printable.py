"""Escape untrusted text for terminals and logs, so that it can neither control them nor forge lines."""

from __future__ import annotations

import re

_BIDIRECTIONAL = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that change the reading direction, with which one line can look like another."""

_LINES = (0x2028, 0x2029)
"""Line separators that only some programs recognize."""

_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), *_LINES, *_BIDIRECTIONAL)}
_JSON = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 0x7F}
_COMMAND = re.compile(r"^(\s*)(::|##\[)")


def printable(text: str) -> str:
    r"""Return text on one line, with control characters escaped as in Python: `\n`, `\x1b`."""
    return text.translate(_CONTROLS)


def printable_lines(text: str, indent: str = "") -> str:
    """Return text with every line escaped, and all but the first indented.

    Lines that look like GitHub workflow commands (`::error::`) are escaped as well.
    """
    first, *others = (_COMMAND.sub(r"\1\\\2", printable(line)) for line in text.split("\n"))
    return "\n".join([first, *(indent + line.strip() if indent else line for line in others)])


def printable_json(document: str) -> str:
    """Escape the control characters in a JSON document that JSON itself allows; it escapes those below a space."""
    return document.translate(_JSON)
