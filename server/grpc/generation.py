"""Generated texts over gRPC, as Triton's backends for language models answer: as a whole, or piece by piece in a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np

from demi.generation.generator import Piece, Prompt
from demi.server.errors import error_text, status_of
from demi.server.grpc.calls import Call
from demi.server.grpc.inference import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from demi.server.grpc.text_request import TEXT, TextRequest, read_text_request
from demi.server.grpc.traces import trace
from demi.server.memory_limit import MemoryLimit
from demi.server.models.generation import Generations, generator_of
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer
from demi.server.protocol.binary_tensors import write_binary
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.settings import ServeSettings
from demi.server.telemetry.tracing import Tracer
from demi.tensors import Array, DType

FINAL = "triton_final_response"
"""The parameter that is true in the last answer to a request, and false in those before it."""

_DTYPES = {TEXT: DType.BYTES, "finish_reason": DType.BYTES}
"""The datatypes of outputs; all others are UINT32."""


class TextMethods:
    """Answers requests for generated texts, within the limits of the server."""

    def __init__(
        self, settings: ServeSettings, memory: SharedMemory, memory_limit: MemoryLimit, tracer: Tracer | None
    ) -> None:
        self._settings = settings
        self._memory = memory
        self._tracer = tracer
        self._generations = Generations(settings, memory_limit)

    async def whole(self, message: ModelInferRequest, model: Model, call: Call) -> tuple[Answer, ModelInferResponse]:
        """Return the whole texts, also for a request to stream them: there is one answer. Raises as `Generations` does."""
        return await self._whole(self._read(message, model, call), model)

    async def _whole(self, asked: TextRequest, model: Model) -> tuple[Answer, ModelInferResponse]:
        started_ns = time.monotonic_ns()
        prompts = await self._generations.prepare(generator_of(model), asked.asked.raw)
        texts = ["" for _ in prompts]
        last: dict[int, Piece] = {}
        async with aclosing(self._generations.generate(model, prompts, asked.asked)) as pieces:
            async for place, piece in pieces:
                texts[place] += piece.text
                last[place] = piece
        if asked.with_input:
            texts = [str(row) + text for row, text in zip(asked.asked.raw.rows, texts, strict=True)]
        pieces_made = [Piece(text, last[place].finish, last[place].tokens) for place, text in enumerate(texts)]
        answer = Answer({}, _precision(model, asked), 0, time.monotonic_ns() - started_ns)
        return answer, _response(model, asked, pieces_made, prompts)

    async def stream(self, message: ModelInferRequest, model: Model, call: Call) -> bytes | AsyncGenerator[bytes, None]:
        """Return the answer to one request of a stream: all texts as one message, or a message for each piece.

        Raises RequestError for a request that cannot be read; what fails in pieces is a message.
        """
        asked = self._read(message, model, call)
        if asked.stream:
            return self._messages(asked, message, model, call)
        _, response = await self._whole(asked, model)
        return as_final(response)

    def _read(self, message: ModelInferRequest, model: Model, call: Call) -> TextRequest:
        (kind,) = generator_of(model).inputs
        return read_text_request(message, kind, self._memory, self._settings.timeout_s, call.time_remaining())

    async def _messages(
        self, asked: TextRequest, message: ModelInferRequest, model: Model, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Yield a serialized answer for each piece with text, and the final one; or an error message."""
        started_ns, code = time.time_ns(), "OK"
        try:
            prompts = await self._generations.prepare(generator_of(model), asked.asked.raw)
            tokens = 0
            async with aclosing(self._generations.generate(model, prompts, asked.asked)) as pieces:
                async for _, piece in pieces:
                    if not (piece.text or piece.finish):
                        continue
                    new = Piece(piece.text, piece.finish, piece.tokens - tokens)
                    tokens = piece.tokens
                    response = _response(model, asked, [new], prompts)
                    yield as_final(response, final=bool(piece.finish))
        except Exception as error:
            code = status_of(error).grpc
            yield as_error(message, error)
        finally:
            if self._tracer:
                trace(self._tracer, message, call, "ModelStreamInfer", started_ns, None, code)


def as_final(response: ModelInferResponse, *, final: bool = True) -> bytes:
    """Return an answer of a stream as bytes: the last one to its request, or one before it."""
    response.parameters[FINAL].bool_param = final
    return ModelStreamInferResponse(infer_response=response).SerializeToString()


def as_error(message: ModelInferRequest, error: Exception) -> bytes:
    """Return the error message for a request of a stream as bytes; it is the last answer to the request."""
    failed = ModelInferResponse(model_name=message.model_name, id=message.id)
    return ModelStreamInferResponse(error_message=error_text(error), infer_response=failed).SerializeToString()


def _response(
    model: Model, asked: TextRequest, pieces: Sequence[Piece], prompts: Sequence[Prompt]
) -> ModelInferResponse:
    """Return the answer that holds these pieces, one for each row."""
    columns: dict[str, Sequence[object]] = {
        TEXT: [piece.text for piece in pieces],
        "finish_reason": [piece.finish for piece in pieces],
        "num_input_tokens": [prompt.count for prompt in prompts],
        "num_output_tokens": [piece.tokens for piece in pieces],
    }
    message = ModelInferResponse(model_name=model.name, model_version=model.version, id=asked.asked.id)
    for name in asked.outputs:
        dtype = _DTYPES.get(name, DType.UINT32)
        message.outputs.add(name=name, datatype=dtype.value, shape=asked.shape)
        message.raw_output_contents.append(write_binary(_column(columns[name], dtype), dtype))
    return message


def _column(values: Sequence[object], dtype: DType) -> Array:
    return np.array(values, object if dtype is DType.BYTES else dtype.numpy)


def _precision(model: Model, asked: TextRequest) -> str:
    """Return the precision in which the model generates."""
    return "fp32" if asked.asked.precision == "fp32" or model.monitor.moves_traffic else model.precision
