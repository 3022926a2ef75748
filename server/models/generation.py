"""Generate texts: every token is a run of the decoder, queued and batched as any request, with the cache kept here."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from demi.generation.generator import Generator, Options, Piece, Prompt
from demi.processing.prepared import RawRows
from demi.server.errors import DeadlineError, RequestError, UnavailableError
from demi.server.memory_limit import MemoryLimit
from demi.server.models.inference import in_preprocessing_thread, is_short
from demi.server.models.model import Model
from demi.server.protocol.answer import RequestedPrecision
from demi.server.settings import ServeSettings
from demi.tensors import Feeds, TensorSpec

USUAL = Options()
"""As many tokens as usual, and no stop texts."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Texts to continue, or texts or sounds to answer: one generated text for each row."""

    raw: RawRows
    options: Options = USUAL
    timeout_s: float = 0.0
    """Deadline of the whole text in seconds; 0 sets none."""
    precision: RequestedPrecision = "auto"
    id: str = ""


class Generations:
    """Generates within the limits of a server: texts at a time for each model, and the memory of their caches."""

    def __init__(self, settings: ServeSettings, memory_limit: MemoryLimit) -> None:
        self._most = settings.max_generations
        self._memory_limit = memory_limit

    async def prepare(self, generator: Generator, raw: RawRows) -> list[Prompt]:
        """Return the prompts of raw rows, long ones prepared in another thread. Raises as `Generator.prepare` does."""
        return (
            generator.prepare(raw) if is_short(raw) else await in_preprocessing_thread(lambda: generator.prepare(raw))
        )

    async def generate(
        self, model: Model, prompts: Sequence[Prompt], request: GenerateRequest
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield the pieces of the generated texts as they come, each with the place of its row.

        Closing the iterator ends the generation before its next token. Raises UnavailableError if the model is not
        ready or generates as many texts as it may, OverloadedError without memory for the caches, DeadlineError at the
        deadline, and InferenceError for a run that fails or whose logits are not finite.
        """
        with model.admitted(), self._places(model, prompts, request.options):
            stop = time.monotonic() + request.timeout_s if request.timeout_s else math.inf
            if len(prompts) == 1:
                async for piece in _pieces(model, prompts[0], request, stop):
                    yield 0, piece
                return
            async for place, piece in _merged([_pieces(model, prompt, request, stop) for prompt in prompts]):
                yield place, piece

    @contextlib.contextmanager
    def _places(self, model: Model, prompts: Sequence[Prompt], options: Options) -> Iterator[None]:
        """Count texts, and the memory of their caches at their longest, while the block runs."""
        generator = generator_of(model)
        generator.detects(options)  # raises for an unknown language
        if model.generations + len(prompts) > self._most:
            if len(prompts) > self._most:
                raise RequestError(
                    f"the request has {len(prompts)} prompts, but the server's --max-generations is {self._most}"
                )
            raise UnavailableError(
                f"model `{model.name}` generates {model.generations} texts; the server's limit is --max-generations {self._most}"
            )
        with self._memory_limit.reserve() as reservation:
            for prompt in prompts:
                tokens = len(prompt.first) + generator.most(prompt, options)
                reservation.add(cache_bytes(generator, model.signature.inputs, tokens))
            model.generations += len(prompts)
            try:
                yield
            finally:
                model.generations -= len(prompts)


def generator_of(model: Model) -> Generator:
    """Return the generator of a loaded model. Raises RequestError for a model that does not generate."""
    generator = model.loaded.generator
    if generator is None:
        raise RequestError(f"model `{model.name}` does not generate texts", hint="ask it with /v2/models/NAME/infer")
    return generator


MOST_STOPS, LONGEST_STOP = 16, 256
"""Most stop texts of a request, and most characters of one: each is looked for after every token."""


def read_options(max_tokens: int | None, stop: str | list[str] | None, language: str | None = None) -> Options:
    """Return the options of a request. Raises RequestError for too many or too long stop texts."""
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(texts) > MOST_STOPS or any(not 0 < len(text) <= LONGEST_STOP for text in texts):
        raise RequestError(f"`stop` takes up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters")
    return Options(max_tokens, texts, language)


def cache_bytes(generator: Generator, inputs: Sequence[TensorSpec], tokens: int) -> int:
    """Return the bytes of a cache of so many tokens."""
    names = generator.cache_names
    return sum(
        spec.dtype.numpy.itemsize * tokens * math.prod(dim for dim in spec.shape[1:] if isinstance(dim, int))
        for spec in inputs
        if spec.name in names
    )


async def _pieces(model: Model, prompt: Prompt, request: GenerateRequest, stop: float) -> AsyncIterator[Piece]:
    """Yield the pieces of one text."""
    generator = generator_of(model)

    async def run(part: Model, feeds: Feeds, names: list[str]) -> Feeds:
        left_s = 0.0 if math.isinf(stop) else max(stop - time.monotonic(), 1e-6)
        try:
            return (await part.infer(feeds, names, left_s, None, request.precision, request.id)).outputs
        except DeadlineError as error:
            raise DeadlineError(
                f"the text was not finished within {request.timeout_s:g} s",
                hint="ask for fewer tokens, or raise the `timeout` parameter",
            ) from error

    encoded = None
    if prompt.encoder is not None:
        assert model.encoder is not None  # loading has seen to it
        encoded = await run(model.encoder, prompt.encoder, generator.memory_names)
    options = request.options
    if generator.detects(options):
        feeds = generator.detection(prompt, model.signature.inputs, encoded)
        options = replace(options, language=generator.detected(await run(model, feeds, [generator.rules.logits])))
    text = generator.begin(prompt, model.signature.inputs, encoded, options)
    while not text.finish:
        yield text.take(await run(model, text.feeds, generator.outputs))


async def _merged(streams: Sequence[AsyncIterator[Piece]]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of several texts as they come, with the place of each text; the first failure ends all."""
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue(len(streams))

    async def forward(place: int, stream: AsyncIterator[Piece]) -> None:
        try:
            async for piece in stream:
                await queue.put((place, piece))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.ensure_future(forward(place, stream)) for place, stream in enumerate(streams)]
    growing = len(tasks)
    try:
        while growing:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                growing -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
