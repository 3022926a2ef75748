"""The methods `ModelInfer` and `ModelStreamInfer`: the gRPC counterpart of `server/http/routes/infer.py`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from demi.server.errors import status_of
from demi.server.grpc.answer_cache import AnswerCache
from demi.server.grpc.calls import Call, MessageLimits, text_metadata
from demi.server.grpc.generation import TextMethods, as_error, as_final
from demi.server.grpc.inference import ModelInferRequest, ModelInferResponse
from demi.server.grpc.message_cache import MessageCache
from demi.server.grpc.stream import InferStream
from demi.server.grpc.text_request import asks_for_text, timeout_s
from demi.server.grpc.traces import trace
from demi.server.grpc.wire import read_request, size_of, write_answer
from demi.server.memory_limit import Reservation
from demi.server.models.inference import infer
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.answer import Answer, answer_headers
from demi.server.protocol.request import InferRequest
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.settings import ServeSettings
from demi.server.telemetry.tracing import Tracer
from demi.server.threads import OFF_LOOP_BYTES, in_thread


class InferMethods:
    """Answers single infer messages and streams of them."""

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        memory: SharedMemory,
        tracer: Tracer | None,
        limits: MessageLimits,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._memory = memory
        self._tracer = tracer
        self._limits = limits
        self._cache = MessageCache()
        self._answers = AnswerCache()
        self._texts = TextMethods(settings, memory, limits.memory_limit, tracer)

    async def unary(self, data: bytes, call: Call, reservation: Reservation) -> bytes:
        """Answer one request; the trailing metadata contains precision and timing, as HTTP's headers do."""
        known = None if self._tracer else self._cache.find(data)  # a trace needs the message
        model = self._route(known.model, known.version, call) if known else None
        if known and model and model.signature is known.signature:
            with model.admitted():
                request = known.read(data)
                answer = await self._infer(request, model, call.time_remaining())
                written = await self._serialize(request, answer, model)
        else:
            message = await self._limits.parse(ModelInferRequest, data, reservation)
            answer, response = await self._answer(message, data, call, "ModelInfer", model)
            written = response.SerializeToString()
        call.set_trailing_metadata(tuple(answer_headers(answer).items()))
        return written

    async def stream(self, call: Call) -> None:
        """Answer the requests of a stream in order, several in flight at once.

        A request that fails is answered with an error message, and the stream continues.
        """
        stream = InferStream(call, self._answer_bytes, self._limits.memory_limit, self._settings)
        await stream.run()

    async def _answer_bytes(
        self, data: bytes, call: Call, reservation: Reservation
    ) -> bytes | AsyncGenerator[bytes, None]:
        """Return the serialized answer to one request of a stream, which may be an error message, or several."""
        message = ModelInferRequest()
        try:
            message = await self._limits.parse(ModelInferRequest, data, reservation)
            if model := self._generating(message, call):
                return await self._texts.stream(message, model, call)
            _, response = await self._answer(message, data, call, "ModelStreamInfer")
        except Exception as error:
            return as_error(message, error)
        return as_final(response)

    def _generating(self, message: ModelInferRequest, call: Call) -> Model | None:
        """Return the model of a request for generated texts; None for any other request."""
        if not asks_for_text(message):
            return None
        model = self._route(message.model_name, message.model_version or None, call)
        return model if model.loaded.generator else None

    async def _answer(
        self, message: ModelInferRequest, data: bytes, call: Call, method: str, model: Model | None = None
    ) -> tuple[Answer, ModelInferResponse]:
        """Return the answer to one request, by `model` if it has been chosen already; record a trace if tracing is on."""
        if self._tracer is None:
            return await self._infer_message(message, data, call, model)
        started_ns, answer, code = time.time_ns(), None, "OK"
        try:
            answer, response = await self._infer_message(message, data, call)
            return answer, response
        except Exception as error:
            code = status_of(error).grpc
            raise
        finally:
            trace(self._tracer, message, call, method, started_ns, answer, code)

    async def _infer_message(
        self, message: ModelInferRequest, data: bytes, call: Call, model: Model | None = None
    ) -> tuple[Answer, ModelInferResponse]:
        """Find the model, admit the request, read it, infer, write the answer."""
        if generating := self._generating(message, call):
            return await self._texts.whole(message, generating, call)
        model = model or self._route(message.model_name, message.model_version or None, call)
        with model.admitted():
            request = await self._read(message, data, model)
            answer = await self._infer(request, model, call.time_remaining())
            return answer, await self._write(request, answer, model)

    def _route(self, name: str, version: str | None, call: Call) -> Model:
        return self._repository.route(name, version, lambda header: dict(text_metadata(call)).get(header))

    def _infer(self, request: InferRequest, model: Model, left_s: float | None) -> Coroutine[Any, Any, Answer]:
        return infer(model, request, timeout_s(request.timeout_us, self._settings.timeout_s, left_s))

    async def _read(self, message: ModelInferRequest, data: bytes, model: Model) -> InferRequest:
        raw = list(message.raw_input_contents)
        signature = model.signature

        def read() -> InferRequest:
            return read_request(message, raw, signature, self._memory)

        if size_of(message, raw) > OFF_LOOP_BYTES or self._memory.in_use:
            return await in_thread(read)
        request = read()
        self._cache.keep(data, message, request, signature)
        return request

    async def _write(self, request: InferRequest, answer: Answer, model: Model) -> ModelInferResponse:
        if _is_small(answer):
            return write_answer(model, request, answer)
        return await in_thread(lambda: write_answer(model, request, answer))

    async def _serialize(self, request: InferRequest, answer: Answer, model: Model) -> bytes:
        if _is_small(answer):
            return self._answers.serialize(model, request, answer)
        return await in_thread(lambda: write_answer(model, request, answer).SerializeToString())


def _is_small(answer: Answer) -> bool:
    return sum([values.nbytes for values in answer.outputs.values()]) <= OFF_LOOP_BYTES
