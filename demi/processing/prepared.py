"""Raw inputs that became a model's inputs, and what is needed to turn its outputs into answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from demi.tensors import Feeds


@dataclass(frozen=True, slots=True)
class Token:
    """A token as an answer names it: its text in the vocabulary, and its place in the user's text, in characters."""

    text: str
    start: int
    end: int
    special: bool = False
    """True for a token that stands for none of the text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row after preprocessing: its array, or token ids and types, before rows are padded and stacked."""

    values: Any
    types: Any = None
    tokens: tuple[Token, ...] = ()
    seconds: float = 0.0
    """Length of a sound, before it was cut or padded."""

    @property
    def size(self) -> tuple[int, ...]:
        """Return the row's shape: rows of equal size can be stacked without padding."""
        shape: tuple[int, ...] = np.shape(self.values)
        return shape


@dataclass(frozen=True, slots=True)
class Prepared:
    """The model's inputs for some rows of a request, which can run together."""

    feeds: Feeds
    indices: tuple[int, ...]
    """Places of the rows in the request."""
    counts: tuple[int, ...] = ()
    """Tokens of each text, without padding; empty for images and sound."""
    tokens: tuple[tuple[Token, ...], ...] = ()
    """The tokens of each text, if they were asked for."""
    seconds: float = 0.0
    """Length of all sounds together."""


class Preprocessor(Protocol):
    """Turns raw rows into arrays, and arrays into a model's inputs. Thread-safe."""

    @property
    def pads(self) -> bool:
        """Return whether rows of different sizes may be padded to one, as the model gets a mask."""

    def read(self, raw: RawRows, *, with_tokens: bool = False) -> list[Row]:
        """Return the rows. Raises InputError, naming the row that is wrong."""

    def stack(self, rows: Sequence[Row]) -> Feeds:
        """Return the model's inputs for rows of one size, or of several if it pads."""


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Wishes of a request that differ from the bundle's description."""

    normalize: bool | None = None
    """True for embeddings of length 1; None leaves it to the bundle."""
    raw_scores: bool = False
    """Return logits instead of scores."""


USUAL = AnswerOptions()


@dataclass(frozen=True, slots=True)
class RawRows:
    """The raw input of a request: one text (or its token ids), or the bytes of one image or sound, for each row.

    `pairs` holds the second texts for a model that compares two. Rows longer than the model takes are cut with
    `truncate`, and refused without it.
    """

    rows: tuple[str | bytes | tuple[int, ...], ...]
    pairs: tuple[str, ...] = ()
    truncate: bool = False
    prompt: str = ""
    """Put before each text."""

    def __len__(self) -> int:
        return len(self.rows)
