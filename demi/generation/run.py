"""Generate one text after the other with sessions in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from demi.generation.generator import Generator, Options, Piece
from demi.processing.prepared import RawRows
from demi.runtime.base import Session
from demi.tensors import check_feeds


def generate(
    generator: Generator, raw: RawRows, decoder: Session, encoder: Session | None, options: Options
) -> Iterator[tuple[int, Piece]]:
    """Yield the pieces of the generated texts with the place of their row, one text after the other.

    Raises InputError for a row that cannot be read, and InferenceError if the runtime fails or logits are not finite.
    """
    for place, prompt in enumerate(generator.prepare(raw)):
        encoded = None
        if prompt.encoder is not None:
            assert encoder is not None  # opened with the bundle
            feeds = check_feeds(encoder.inputs, prompt.encoder, cast_floats=True)
            encoded = encoder.run(feeds, generator.memory_names)
        own = options
        if generator.detects(options):
            outputs = decoder.run(generator.detection(prompt, decoder.inputs, encoded), [generator.rules.logits])
            own = replace(options, language=generator.detected(outputs))
        text = generator.begin(prompt, decoder.inputs, encoded, own)
        while not text.finish:
            yield place, text.take(decoder.run(text.feeds, generator.outputs))
