"""OpenAI's paths for embeddings: `/v1/embeddings` and `/v1/models`, with its bodies and its form of errors."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Literal

import msgspec
import numpy as np
import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.processing.answers import EMBEDDING, unit_length
from demi.processing.description import EmbeddingAnswer
from demi.processing.prepared import RawRows
from demi.server.errors import NotFoundError, RequestError
from demi.server.http.answer import HttpAnswer, error_answer
from demi.server.http.openapi import json_body
from demi.server.http.raw_requests import RawRequests
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer, answer_headers
from demi.tensors import Array

JSON = "application/json"

_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {"type": "object", "properties": {"message": {"type": "string"}, "type": {"type": "string"}}}
    },
    "required": ["error"],
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {JSON: {"schema": _ERROR}}}
    for status, text in {
        400: "The request does not follow the protocol, or its input cannot be read",
        404: "Unknown model",
        413: "The body is too large",
        503: "The model is not ready, or its queue is full",
    }.items()
}
"""Errors in OpenAI's form, for the OpenAPI document."""


class EmbeddingsRequest(msgspec.Struct):
    """The body of `/v1/embeddings`; `input` is a text, its token ids, or a list of either. `truncate` is an extension."""

    input: str | list[Any]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    truncate: bool = False


def openai_routes(requests: RawRequests) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["openai"])

    @router.post(
        "/v1/embeddings",
        openapi_extra=json_body({"input": {}, "model": {"type": "string"}}, "input", "model"),
        responses=ERRORS,
    )
    @openai_errors
    async def embeddings(request: Request) -> Response:
        """Return the embeddings of texts, and the number of their tokens."""
        async with requests.body(request) as body:
            asked = requests.decode(body, EmbeddingsRequest)
            model, _ = requests.find(request, asked.model, EmbeddingAnswer)
            answer = await requests.infer(model, RawRows(rows_of(asked.input), truncate=asked.truncate), (EMBEDDING,))
        vectors = shortened(answer.outputs[EMBEDDING], asked.dimensions)
        content = _embeddings_body(model, vectors, answer, asked.encoding_format)
        return Response(content, 200, {"content-type": JSON, **answer_headers(answer)})

    @router.get("/v1/models", responses=ERRORS)
    @openai_errors
    async def models(request: Request) -> Response:
        """List the models that are ready and take texts, images or sound."""
        listed = [_model_entry(model) for model in requests.repository if _is_listed(model)]
        return Response(orjson.dumps({"object": "list", "data": listed}), 200, {"content-type": JSON})

    @router.get("/v1/models/{model}", responses=ERRORS)
    @openai_errors
    async def one_model(request: Request, model: str) -> Response:
        """Describe one model."""
        found = requests.repository.find(model)
        found.check_ready()
        return Response(orjson.dumps(_model_entry(found)), 200, {"content-type": JSON})

    return router


def shortened(vectors: Array, dimensions: int | None) -> Array:
    """Return vectors cut to their first `dimensions` and scaled to length 1, for models that were trained for it.

    Raises RequestError for more dimensions than there are.
    """
    if dimensions is None:
        return vectors
    if not 0 < dimensions <= vectors.shape[1]:
        raise RequestError(f"`dimensions` is {dimensions}; the embedding has {vectors.shape[1]}")
    return unit_length(np.ascontiguousarray(vectors[:, :dimensions]))


def rows_of(given: str | list[Any], name: str = "input") -> tuple[str | tuple[int, ...], ...]:
    """Return the rows of `input`, or the field called `name`. Raises RequestError for anything but texts and token ids."""
    if isinstance(given, str):
        return (given,)
    if given and all(type(each) is int for each in given):
        return (tuple(given),)
    if all(isinstance(each, str) for each in given):
        return tuple(given)
    if all(isinstance(each, list) and all(type(token) is int for token in each) for each in given):
        return tuple(tuple(each) for each in given)
    raise RequestError(f"`{name}` must be a text, a list of texts, or token ids")


def _embeddings_body(model: Model, vectors: Array, answer: Answer, form: str) -> bytes:
    def write(vector: Array) -> object:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector

    data = [
        {"object": "embedding", "index": index, "embedding": write(vector)}
        for index, vector in enumerate(np.ascontiguousarray(vectors))
    ]
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    body = {"object": "list", "data": data, "model": model.name, "usage": usage}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _is_listed(model: Model) -> bool:
    if model.state.value != "READY":
        return False
    return model.loaded.processor is not None or model.loaded.generator is not None


def _model_entry(model: Model) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "demi"}


Route = Callable[..., Awaitable[Response]]


def openai_errors(route: Route) -> Route:
    """Answer errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

    @wraps(route)
    async def answered(request: Request, **path: str) -> Response:
        try:
            return await route(request, **path)
        except Exception as error:
            usual = error_answer(error)
            return Response(openai_error(error, usual), usual.status, usual.headers)

    return answered


def openai_error(error: Exception, usual: HttpAnswer) -> bytes:
    """Return the body of an error in OpenAI's form."""
    kind = "invalid_request_error" if usual.status < 500 else "server_error"
    code = "model_not_found" if isinstance(error, NotFoundError) else None
    content = {"message": orjson.loads(usual.body)["error"], "type": kind, "param": None, "code": code}
    return orjson.dumps({"error": content})
