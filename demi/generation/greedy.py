"""One sequence while it is generated: the inputs of its next step, the token that a step chooses, and its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from demi.errors import InferenceError
from demi.processing.description import Generation
from demi.tensors import Array, Feeds, TensorSpec

Finish = Literal["", "stop", "length"]
"""The reason that a sequence has ended: an end token or a stop text, or its length; empty while it grows."""


class Greedy:
    """A sequence that grows by the most probable token. Owns its cache and its tokens; used by one thread at a time."""

    def __init__(
        self,
        rules: Generation,
        inputs: Mapping[str, TensorSpec],
        first: Sequence[int],
        memory: Feeds,
        most: int,
    ) -> None:
        """`first` are the ids of the first step, `memory` the decoder's inputs that never change, `most` the most new tokens.

        `inputs` are the decoder's, with the dtypes that it takes.
        """
        self.tokens: list[int] = []
        """The tokens chosen so far; an end token is the last."""
        self.finish: Finish = "" if most > 0 else "length"
        self._rules = rules
        self._ids_dtype = inputs[rules.ids].dtype.numpy
        self._memory = memory
        self._cache = {pair.input: empty_cache(inputs[pair.input]) for pair in rules.cache}
        self._next = list(first)
        self._most = most

    @property
    def feeds(self) -> Feeds:
        """The decoder's inputs for the next step: ids INT64[1, tokens], the cache, and the encoder's memory."""
        return {self._rules.ids: np.array([self._next], self._ids_dtype), **self._cache, **self._memory}

    @property
    def outputs(self) -> list[str]:
        """The decoder's outputs that a step needs."""
        return [self._rules.logits, *(pair.output for pair in self._rules.cache)]

    def take(self, outputs: Feeds) -> int:
        """Return the token that a step's outputs choose, and keep their cache. Raises InferenceError for NaN or infinity."""
        token = self.choose(outputs)
        self.force(token, outputs)
        return token

    def choose(self, outputs: Feeds) -> int:
        """Return the token that a step's outputs choose, without taking it. Raises as `take` does."""
        return self._choose(np.asarray(outputs[self._rules.logits][0], np.float32))

    def force(self, token: int, outputs: Feeds) -> None:
        """Continue with a token that somebody else has chosen, and the cache of these outputs."""
        self._cache = {pair.input: outputs[pair.output] for pair in self._rules.cache}
        self._next = [token]
        self.tokens.append(token)
        if token in self._rules.ends:
            self.finish = "stop"
        elif len(self.tokens) >= self._most:
            self.finish = "length"

    def _choose(self, logits: Array) -> int:
        if not np.isfinite(logits.max()):  # NaN as well; a model may mask single tokens with -infinity
            raise InferenceError(
                f"the model's `{self._rules.logits}` are not finite at token {len(self.tokens)}",
                hint="export it with these inputs as samples (--sample), or ask for FP32",
            )
        never = self._rules.suppressed + (() if self.tokens else self._rules.suppressed_first)
        if never:
            logits = logits.copy()
            logits[list(never)] = -np.inf
        return int(logits.argmax())


def empty_cache(spec: TensorSpec) -> Array:
    """Return the cache of no tokens: length 1 along the first axis, 0 along the other free one."""
    sizes = [dim if isinstance(dim, int) else 0 for dim in spec.shape[1:]]
    return np.zeros([1, *sizes], spec.dtype.numpy)
