"""The language of a text that is written for a sound: named by a request, the most probable one, or the model's usual one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from demi.errors import InferenceError, InputError
from demi.processing.description import Languages
from demi.tensors import Array


class LanguageChoice:
    """Chooses among the languages of a model; without any, there is nothing to choose."""

    def __init__(self, languages: Languages | None) -> None:
        self._tokens = dict(languages.tokens) if languages else {}
        self.place = languages.place if languages else 0
        """The place of the language's token among the first ids of a text."""
        self.detected = bool(languages and languages.detected)
        """True if the most probable language is taken when a request names none."""

    def token(self, language: str | None) -> int | None:
        """Return the token of a language, by its code; None for none. Raises InputError, with the codes, for an unknown one."""
        if language is None:
            return None
        if not self._tokens:
            raise InputError("the model has no choice of languages", where="language", hint="leave it out")
        found = self._tokens.get(language.strip().lower())
        if found is None:
            raise InputError(
                f"the model does not write `{language[:40]}`",
                where="language",
                hint=f"its languages are {', '.join(sorted(self._tokens))}",
            )
        return found

    def start(self, first: Sequence[int], language: str | None) -> tuple[tuple[int, ...], str]:
        """Return the first ids of a text, with this language if there is one, and the code of the language in them."""
        token = self.token(language)
        ids = tuple(first)
        if token is not None:
            ids = (*ids[: self.place], token, *ids[self.place + 1 :])
        codes = {number: code for code, number in self._tokens.items()}
        return ids, codes.get(ids[self.place], "") if codes and self.place < len(ids) else ""

    def choose(self, logits: Array) -> str:
        """Return the code of the language whose logit, of FP32[vocabulary], is the largest.

        Raises InferenceError if that is NaN or infinite.
        """
        codes = list(self._tokens)
        found = logits[[self._tokens[code] for code in codes]]
        if not np.isfinite(found.max()):
            raise InferenceError(
                "the logits of the languages are not finite",
                hint="name the language, or export the model with these sounds as samples (--sample)",
            )
        return codes[int(found.argmax())]
