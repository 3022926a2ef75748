"""Text that grows with its tokens: only what no later token can change is given out, and a stop text ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from demi.processing.texts import decode_ids

UNFINISHED = "\ufffd"
"""The character that a tokenizer writes while it has only the first bytes of one."""


class GrowingText:
    """The text of a sequence. Owns its ids; the pieces that `add` and `finish` return are together the whole text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        """True once a stop text has appeared; it is not part of the text."""
        self._tokenizer = tokenizer
        self._stop = tuple(each for each in stop if each)
        self._ids: list[int] = []
        self._sent = 0

    def add(self, token: int) -> str:
        """Return the text that is certain with this token, after what was returned before; often empty."""
        self._ids.append(token)
        text = decode_ids(self._tokenizer, self._ids)
        place = self._find_stop(text)
        if place is not None:
            self.stopped = True
            return self._send(text, place)
        return self._send(text, len(text) - self._held_back(text))

    def finish(self) -> str:
        """Return the rest of the text, once no token follows."""
        if self.stopped:
            return ""
        text = decode_ids(self._tokenizer, self._ids)
        return self._send(text, len(text))

    def _send(self, text: str, end: int) -> str:
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _find_stop(self, text: str) -> int | None:
        """Return where the first stop text begins, None without one; what was sent holds none."""
        longest = max(map(len, self._stop), default=0)
        places = [text.find(each, max(0, self._sent - longest)) for each in self._stop]
        return min((place for place in places if place >= 0), default=None)

    def _held_back(self, text: str) -> int:
        """Return how many characters at the end may still change, or be the beginning of a stop text."""
        whole = text.rstrip(UNFINISHED)
        beginnings = (each[:size] for each in self._stop for size in range(1, len(each)))
        return len(text) - len(whole) + max((len(each) for each in beginnings if whole.endswith(each)), default=0)
