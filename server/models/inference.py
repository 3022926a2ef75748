"""Answer a request, whichever inputs it has: tensors go to the model, texts, images and sounds through its processor.

Long preprocessing runs in other threads while the device computes earlier batches; a few short texts take less time on the
event loop than a thread takes to start.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from demi.processing.description import TokenAnswer
from demi.processing.prepared import Prepared, RawRows
from demi.processing.processor import Processor
from demi.runtime.cores import usable_cores
from demi.server.errors import RequestError
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer
from demi.server.protocol.request import InferRequest
from demi.server.scheduling.deadlines import Gone
from demi.tensors import Feeds

SHORT_CHARACTERS = 2000
"""Texts of so many characters together are tokenized on the event loop, in about half a millisecond."""

SMALL_BYTES = 1 << 20
"""Outputs of so many bytes become answers on the event loop."""

T = TypeVar("T")

RUNS_AT_ONCE = 4
"""Runs of one request that wait in the queue at the same time."""


def infer(
    model: Model, request: InferRequest, timeout_s: float, gone: Gone | None = None
) -> Coroutine[Any, Any, Answer]:
    """Return a coroutine of the outputs and answers that a request asks for; for tensors alone, it is the model's own.

    Raises as `Model.infer` does, and InputError for raw inputs.
    """
    processor = model.loaded.processor
    names = request.output_names
    has_answers = processor is not None and any(model.signature.is_answer(name) for name in names)
    if processor is None or (request.raw is None and not has_answers):
        return model.infer(request.feeds, names, timeout_s, gone, request.precision, request.id)
    return _infer_processed(model, processor, request, names, timeout_s, gone)


async def _infer_processed(
    model: Model, processor: Processor, request: InferRequest, names: list[str], timeout_s: float, gone: Gone | None
) -> Answer:
    """Return outputs and answers of a model with a processor.

    A request with texts of very different lengths becomes several runs, so that little is padding.
    """
    runs = await _prepare(processor, request, names, model)
    needed = processor.needs(names)
    answers = await _infer_all(model, runs, needed, request, timeout_s, gone)
    return await _finish(processor, runs, answers, request)


async def _prepare(processor: Processor, request: InferRequest, names: Sequence[str], model: Model) -> list[Prepared]:
    """Return the runs of a request."""
    if request.raw is None:
        if isinstance(processor.description.answer, TokenAnswer):
            raise RequestError("entities name places in a text", hint="send `text` instead of tensors")
        return [Prepared(request.feeds, (0,))]
    signature = model.signature
    together = not signature.joins or not all(map(signature.is_answer, names))
    most = signature.max_batch_size or len(request.raw)
    work = functools.partial(processor.prepare, request.raw, most, together=together and processor.kind == "text")
    return work() if is_short(request.raw) else await in_preprocessing_thread(work)


async def _infer_all(
    model: Model, runs: Sequence[Prepared], names: list[str], request: InferRequest, timeout_s: float, gone: Gone | None
) -> list[Answer]:
    """Infer all runs, a few at a time; the first failure, or the client's disconnection, cancels the others."""
    if len(runs) == 1:
        return [await model.infer(runs[0].feeds, names, timeout_s, gone, request.precision, request.id)]
    room = asyncio.Semaphore(RUNS_AT_ONCE)

    async def one(index: int, run: Prepared) -> Answer:
        async with room:
            watch = gone if index == 0 else None  # one may wait for the client to disconnect
            return await model.infer(run.feeds, names, timeout_s, watch, request.precision, request.id)

    tasks = [asyncio.ensure_future(one(index, run)) for index, run in enumerate(runs)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _finish(
    processor: Processor, runs: Sequence[Prepared], answers: Sequence[Answer], request: InferRequest
) -> Answer:
    """Return the answers of all runs as one."""

    def make() -> Feeds:
        made = []
        for run, answer in zip(runs, answers, strict=True):
            found = {**answer.outputs, **processor.answer(run, answer.outputs, request.answer_options)}
            made.append({name: found[name] for name in request.output_names})
        return processor.join(runs, made)

    size = sum(values.nbytes for answer in answers for values in answer.outputs.values())
    outputs = make() if size <= SMALL_BYTES else await in_preprocessing_thread(make)
    return Answer(
        outputs,
        answers[0].precision,
        max(answer.queue_ns for answer in answers),
        sum(answer.compute_ns for answer in answers),
        frozenset().union(*(answer.not_finite for answer in answers)),
        frozenset().union(*(answer.outside for answer in answers)),
        sum(sum(run.counts) for run in runs),
    )


def is_short(raw: RawRows) -> bool:
    """Return whether raw rows are texts, or their ids, that are tokenized at once."""
    return all(isinstance(row, str | tuple) for row in raw.rows) and (
        sum(map(len, raw.rows)) + sum(map(len, raw.pairs)) <= SHORT_CHARACTERS
    )


async def in_preprocessing_thread(work: Callable[[], T]) -> T:
    """Run `work` in one of as many threads as there are cores, which bounds the memory of unpacked images."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), work)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cores(), "demi-preprocessing")
