"""Texts to token ids, with Hugging Face's `tokenizers`; the only module that imports it.

A text is encoded once, without truncation: its length decides whether it is refused, cut, or passed on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from demi.errors import BundleError, InputError, missing_package
from demi.processing.description import TextInput
from demi.processing.prepared import RawRows, Row, Token
from demi.tensors import Feeds, TensorSpec

MOST_CHARACTERS = 1_000_000
"""Longest text in characters, even if it is to be truncated: encoding it takes about a second."""

FEW = 4
"""Texts that are encoded one after the other: `tokenizers` wakes a pool of threads for a batch."""


class TooLongError(InputError):
    """A text has more tokens than the model takes, and the request did not ask for truncation."""


class TextPreprocessor:
    """Makes `input_ids` and their companions of texts. Thread-safe.

    Raises BundleError if the tokenizer cannot be read, and PackageError without the package.
    """

    def __init__(self, description: TextInput, tokenizer: str, specs: Mapping[str, TensorSpec], where: str) -> None:
        self.description = description
        self.specs = specs
        self._source = tokenizer
        self._where = where
        self._plain = open_tokenizer(tokenizer, where)
        length = specs[description.ids].shape[1]
        self.fixed_length = length if isinstance(length, int) else None
        """Tokens of every row, for a model that takes no other length."""
        self.most = min(description.max_length, self.fixed_length or description.max_length)
        """Most tokens of a row."""

    @property
    def pads(self) -> bool:
        """Return whether texts of different lengths may share a run: the model has a mask for padding."""
        return self.description.mask is not None

    def read(self, raw: RawRows, *, with_tokens: bool = False) -> list[Row]:
        """Return the token ids and types of texts; with `with_tokens`, also the tokens and their places.

        Raises TooLongError for a text with too many tokens that may not be cut, and InputError for one that cannot be
        encoded, or for ids that the vocabulary does not have.
        """
        if any(isinstance(row, tuple) for row in raw.rows):
            return self._read_ids(raw.rows, truncate=raw.truncate)
        rows = [raw.prompt + _as_text(row) for row in raw.rows]
        for index, text in enumerate((*rows, *raw.pairs)):
            _check_text(text, index % len(rows))
        found = self._encode(rows, raw.pairs, truncate=raw.truncate)
        unknown = getattr(self._plain.model, "unk_token", None)
        return [
            Row(each.ids, each.type_ids, _tokens(each, text, len(raw.prompt), unknown) if with_tokens else ())
            for each, text in zip(found, rows, strict=True)
        ]

    def stack(self, rows: Sequence[Row]) -> Feeds:
        """Return token ids, mask and types, each [rows, tokens], padded to the longest row."""
        text = self.description
        counts = [len(row.values) for row in rows]
        length = self.fixed_length or max(counts, default=0)
        result = {text.ids: np.full((len(rows), length), text.pad_id, self.specs[text.ids].dtype.numpy)}
        if text.mask:
            result[text.mask] = np.zeros((len(rows), length), self.specs[text.mask].dtype.numpy)
        if text.types:
            result[text.types] = np.full((len(rows), length), text.pad_type, self.specs[text.types].dtype.numpy)
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            place = slice(length - count, length) if text.pad_side == "left" else slice(0, count)
            result[text.ids][index, place] = row.values
            if text.mask:
                result[text.mask][index, place] = 1
            if text.types:
                result[text.types][index, place] = row.types
        return result

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, special tokens included."""
        return len(self._plain.encode(text).ids)

    def _encode(self, rows: Sequence[str], pairs: Sequence[str], *, truncate: bool) -> list[Any]:
        inputs: list[Any] = list(zip(rows, pairs, strict=True)) if pairs else list(rows)
        with _refused_texts():
            found = _encode_all(self._plain, inputs)
            long = [index for index, each in enumerate(found) if len(each.ids) > self.most]
            if long and not truncate:
                raise self._too_long(long[0], len(found[long[0]].ids))
            for index in long:
                found[index] = _encode_all(self._cutting, [inputs[index]])[0]
        return found

    def _too_long(self, index: int, length: int) -> TooLongError:
        return TooLongError(
            f"text {index} has {length} tokens, but the model takes at most {self.most}",
            hint="send a shorter text, or ask for truncation with `truncate`",
        )

    def _read_ids(self, rows: Sequence[Any], *, truncate: bool) -> list[Row]:
        """Return texts that the caller has tokenized, special tokens included."""
        vocabulary = self._plain.get_vocab_size()
        found = []
        for index, row in enumerate(rows):
            ids = list(row[: self.most] if truncate else row)
            if len(ids) > self.most:
                raise self._too_long(index, len(ids))
            if not ids or min(ids) < 0 or max(ids) >= vocabulary:
                raise InputError(f"text {index} has no token ids, or one outside 0 to {vocabulary - 1}")
            found.append(Row(ids, [0] * len(ids)))
        return found

    @cached_property
    def _cutting(self) -> Any:
        """The tokenizer with truncation, which is a state of its own: switching it would not be thread-safe."""
        cutting = open_tokenizer(self._source, self._where)
        cutting.enable_truncation(self.most, direction=self.description.truncation_side)
        return cutting


def open_tokenizer(source: str, where: str) -> Any:
    """Return the tokenizer of a `tokenizer.json`, without truncation and padding.

    Raises BundleError, naming `where`, if it cannot be read, and PackageError without the package.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_package("tokenizers", "processing") from error
    try:
        with _panics_as_errors():
            found = Tokenizer.from_str(source)
            found.no_padding()
            found.no_truncation()
    except Exception as error:  # `tokenizers` raises plain Exception
        raise BundleError(
            f"`tokenizer.json` cannot be read: {_first_line(error)}",
            where=where,
            hint="export the model again, with the tokenizer.json of a fast tokenizer",
        ) from error
    return found


def decode_ids(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of token ids, without special tokens; ids that the vocabulary lacks are left out."""
    with _panics_as_errors():
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _encode_all(tokenizer: Any, inputs: list[Any]) -> list[Any]:
    if len(inputs) > FEW:
        return list(tokenizer.encode_batch(inputs))
    return [tokenizer.encode(*each) if isinstance(each, tuple) else tokenizer.encode(each) for each in inputs]


def _tokens(encoding: Any, text: str, prompt: int, unknown: str | None) -> tuple[Token, ...]:
    """Return the tokens of a text, unknown ones as they are written; their places do not count the prompt before it."""
    rows = zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
    return tuple(
        Token(
            text[start:end] if word == unknown else word, start - prompt, end - prompt, bool(special) or end <= prompt
        )
        for word, (start, end), special in rows
    )


def _as_text(row: object) -> str:
    assert isinstance(row, str)  # the reader of requests has seen to it
    return row


def _check_text(text: str, index: int) -> None:
    if len(text) > MOST_CHARACTERS:
        raise InputError(
            f"text {index} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read",
            hint="send its parts as texts of their own",
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {index} is not Unicode: character {error.start} is half of a surrogate pair",
                hint="send UTF-8 text",
            ) from error


@contextlib.contextmanager
def _refused_texts() -> Iterator[None]:
    """Turn what the tokenizer raises for a text into InputError."""
    try:
        with _panics_as_errors():
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"a text cannot be tokenized: {_first_line(error)}") from error


@contextlib.contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError in place of a panic in Rust, which is not an Exception."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"the tokenizer failed: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
