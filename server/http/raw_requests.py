"""Requests for embeddings, scores and labels in other servers' protocols: read, find the model, infer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from starlette.requests import Request

from demi.processing.description import AnswerKind
from demi.processing.prepared import USUAL, AnswerOptions, RawRows
from demi.processing.processor import Processor
from demi.server.errors import LIST_HINT, NotFoundError, RequestError
from demi.server.http.asgi import read_body, read_headers
from demi.server.memory_limit import MemoryLimit
from demi.server.models.generation import Generations, generator_of
from demi.server.models.inference import infer
from demi.server.models.model import Model, State
from demi.server.models.repository import Repository
from demi.server.protocol.answer import Answer
from demi.server.protocol.json_size import check_weight
from demi.server.protocol.request import MOST_RAW_ROWS, InferRequest, OutputRequest
from demi.server.settings import ServeSettings

T = TypeVar("T")


class RawRequests:
    """Reads and answers requests of rows for the models of a repository, within the server's limits."""

    def __init__(self, repository: Repository, settings: ServeSettings, memory_limit: MemoryLimit) -> None:
        self.repository = repository
        self._settings = settings
        self._memory_limit = memory_limit
        self.generations = Generations(settings, memory_limit)
        """Generates texts within the server's limits."""

    @property
    def timeout_s(self) -> float:
        """Deadline of a request that sets none, in seconds; 0 for none."""
        return self._settings.timeout_s

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body, whose memory is counted while the block runs.

        Raises BodyTooLargeError and OverloadedError as for infer requests.
        """
        with self._memory_limit.reserve() as reservation:
            headers = read_headers(request.scope)
            yield await read_body(request.receive, headers, self._settings.max_body_bytes, reservation)

    def decode(self, body: bytes, kind: type[T]) -> T:
        """Return a JSON body. Raises RequestError, naming the member that is wrong."""
        check_weight(body, self._settings.max_parsed_bytes)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(f"the body does not follow the protocol: {error}") from error

    def find(self, request: Request, name: str | None, *kinds: type[AnswerKind]) -> tuple[Model, Processor]:
        """Return the model that a request names, else the only one with this kind of answer, and its processor.

        The name is `model` in the body, or in the query. Raises NotFoundError if there is none, RequestError if there
        are several, or if the one that is named has another kind of answer.
        """
        name = name or request.query_params.get("model")
        if name is None:
            name = self._only(request.url.path, *kinds)
        model = self.repository.route(name, None, request.headers.get)
        model.check_ready()
        processor = model.loaded.processor
        if processor is None or not isinstance(processor.description.answer, kinds):
            task = processor.description.task if processor else "tensors"
            raise RequestError(
                f"model `{name}` is for {task or 'another task'}, which `{request.url.path}` does not serve",
                hint="ask it with /v2/models/NAME/infer",
            )
        return model, processor

    def find_generator(self, request: Request, name: str | None, version: str | None = None) -> Model:
        """Return the model that a request names, else the only one that generates. Raises as `find` does."""
        name = name or request.query_params.get("model")
        if name is None:
            names = [model.name for model in self.repository if _generates(model)]
            name = self._only_of(list(dict.fromkeys(names)), request.url.path)
        model = self.repository.route(name, version, request.headers.get)
        model.check_ready()
        generator_of(model)
        return model

    async def infer(
        self, model: Model, rows: RawRows, outputs: tuple[str, ...], options: AnswerOptions = USUAL
    ) -> Answer:
        """Return the answers of an admitted model. Raises RequestError for none or too many rows, else as `infer` does."""
        if not 0 < len(rows) <= MOST_RAW_ROWS:
            raise RequestError(f"the request has {len(rows)} inputs; 1 to {MOST_RAW_ROWS} are taken")
        wanted = tuple(OutputRequest(name, binary=False) for name in outputs)
        asked = InferRequest({}, wanted, raw=rows, answer_options=options)
        with model.admitted():
            return await infer(model, asked, self._settings.timeout_s)

    def names(self, *kinds: type[AnswerKind]) -> list[str]:
        """Return the names of the ready models with one of these kinds of answers."""
        found = [model for model in self.repository if model.state is State.READY]
        return list(dict.fromkeys(model.name for model in found if _has_answer(model, kinds)))

    def _only(self, path: str, *kinds: type[AnswerKind]) -> str:
        return self._only_of(self.names(*kinds), path)

    def _only_of(self, names: list[str], path: str) -> str:
        if not names:
            raise NotFoundError(f"no model that is loaded answers `{path}`", hint=LIST_HINT)
        if len(names) > 1:
            raise RequestError(
                f"{len(names)} models answer `{path}`: {', '.join(names)}",
                hint=f"name one with `model` in the body, or {path}?model={names[0]}",
            )
        return names[0]


def _generates(model: Model) -> bool:
    return model.state is State.READY and model.loaded.generator is not None


def _has_answer(model: Model, kinds: tuple[type[AnswerKind], ...]) -> bool:
    processor = model.loaded.processor
    return processor is not None and isinstance(processor.description.answer, kinds)
