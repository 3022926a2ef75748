"""The paths of text-embeddings-inference: `/embed`, `/rerank`, `/predict`, with its bodies and its form of errors.

Images and sound are classified by `/predict` as well: their file is the body, as Hugging Face's clients send it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Literal

import msgspec
import numpy as np
import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.errors import DemiError, InferenceError, InputError
from demi.processing.answers import EMBEDDING, SCORE, SCORES
from demi.processing.description import ClassAnswer, EmbeddingAnswer, ScoreAnswer
from demi.processing.prepared import AnswerOptions, RawRows
from demi.processing.processor import Processor
from demi.server.errors import NotFoundError, OverloadedError, RequestError, UnavailableError
from demi.server.http.answer import error_answer
from demi.server.http.openapi import json_body
from demi.server.http.raw_requests import RawRequests
from demi.server.http.routes.openai import shortened
from demi.server.protocol.answer import Answer, answer_headers
from demi.server.protocol.raw_body import looks_like_json
from demi.tensors import Array

Route = Callable[[Request], Awaitable[Response]]

ERRORS: dict[type[Exception], tuple[int, str]] = {
    RequestError: (422, "Validation"),
    NotFoundError: (404, "Validation"),
    InputError: (413, "Validation"),
    OverloadedError: (429, "Overloaded"),
    UnavailableError: (503, "Unhealthy"),
    InferenceError: (424, "Backend"),
    DemiError: (424, "Backend"),
}
"""Status and type of each error as text-embeddings-inference has them: inputs that are too long are 413."""

DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {
        "description": kind,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
                    "required": ["error", "error_type"],
                }
            }
        },
    }
    for status, kind in ERRORS.values()
}
"""The same for the OpenAPI document."""


class EmbedRequest(msgspec.Struct):
    """The body of `/embed`: a text or several."""

    inputs: str | list[Any]
    truncate: bool | None = False
    normalize: bool | None = True
    dimensions: int | None = None
    prompt_name: str | None = None
    truncation_direction: Literal["Right", "right"] = "Right"
    model: str | None = None


class RerankRequest(msgspec.Struct):
    """The body of `/rerank`: texts to rank by their relevance for a query."""

    query: str
    texts: list[str]
    truncate: bool | None = False
    raw_scores: bool = False
    return_text: bool = False
    truncation_direction: Literal["Right", "right"] = "Right"
    model: str | None = None


class PredictRequest(msgspec.Struct):
    """The body of `/predict`: a text, or a list of lists of one text."""

    inputs: str | list[Any]
    truncate: bool | None = False
    raw_scores: bool = False
    truncation_direction: Literal["Right", "right"] = "Right"
    parameters: dict[str, Any] | None = None
    """Hugging Face's clients send `top_k` here."""
    model: str | None = None


def text_embeddings_routes(requests: RawRequests) -> APIRouter:
    """Return the routes. Which model answers is the rule of `RawRequests.find`."""
    router = APIRouter(tags=["text-embeddings-inference"])

    @router.post("/embed", openapi_extra=json_body({"inputs": {}}, "inputs"), responses=DOCUMENTED)
    @_their_errors
    async def embed(request: Request) -> Response:
        """Return the embeddings of texts."""
        async with requests.body(request) as body:
            asked = requests.decode(body, EmbedRequest)
            model, processor = requests.find(request, asked.model, EmbeddingAnswer)
            rows = RawRows(_texts(asked.inputs), (), bool(asked.truncate), _prompt(processor, asked.prompt_name))
            options = AnswerOptions(normalize=asked.normalize is not False)
            answer = await requests.infer(model, rows, (EMBEDDING,), options)
        return _answered(shortened(answer.outputs[EMBEDDING], asked.dimensions), answer)

    @router.post(
        "/rerank", openapi_extra=json_body({"query": {"type": "string"}, "texts": {}}, "texts"), responses=DOCUMENTED
    )
    @_their_errors
    async def rerank(request: Request) -> Response:
        """Return the texts' scores for a query, the best first."""
        async with requests.body(request) as body:
            asked = requests.decode(body, RerankRequest)
            model, _ = requests.find(request, asked.model, ScoreAnswer)
            rows = RawRows((asked.query,) * len(asked.texts), tuple(asked.texts), bool(asked.truncate))
            answer = await requests.infer(model, rows, (SCORE,), AnswerOptions(raw_scores=asked.raw_scores))
        scores = answer.outputs[SCORE].tolist()
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return _answered([_rank(asked, index, scores[index]) for index in order], answer)

    @router.post("/predict", openapi_extra=json_body({"inputs": {}}, "inputs"), responses=DOCUMENTED)
    @_their_errors
    async def predict(request: Request) -> Response:
        """Return labels and scores of texts, the best first; or of one image or sound, whose file is the body."""
        async with requests.body(request) as body:
            if looks_like_json(body):
                return await _predict_texts(requests, request, body)
            return await _predict_file(requests, request, body)

    return router


async def _predict_texts(requests: RawRequests, request: Request, body: bytes) -> Response:
    asked = requests.decode(body, PredictRequest)
    model, processor = requests.find(request, asked.model, ClassAnswer)
    if processor.kind != "text":
        raise RequestError(f"model `{model.name}` takes {processor.kind}", hint="send the file as the body")
    is_single = isinstance(asked.inputs, str)
    texts = _texts(asked.inputs if is_single else [_one(each) for each in asked.inputs])
    rows = RawRows(texts, truncate=bool(asked.truncate))
    answer = await requests.infer(model, rows, (SCORES,), AnswerOptions(raw_scores=asked.raw_scores))
    found = [_predictions(processor, scores, _top(asked)) for scores in answer.outputs[SCORES]]
    return _answered(found[0] if is_single else found, answer)


async def _predict_file(requests: RawRequests, request: Request, body: bytes) -> Response:
    model, processor = requests.find(request, None, ClassAnswer)
    if processor.kind == "text":
        raise RequestError("the body is not JSON", hint='send {"inputs": "a text"}')
    answer = await requests.infer(model, RawRows((body,)), (SCORES,))
    return _answered(_predictions(processor, answer.outputs[SCORES][0], None), answer)


def _texts(given: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    """Return the texts of `inputs`, or their token ids. Raises RequestError for anything else."""
    listed = [given] if isinstance(given, str) else given
    if all(isinstance(each, str) for each in listed):
        return tuple(listed)
    if all(isinstance(each, list) and all(type(token) is int for token in each) for each in listed):
        return tuple(tuple(each) for each in listed)
    raise RequestError("`inputs` must be a text, a list of texts, or lists of token ids")


def _one(given: Any) -> Any:
    """Return the text in a list of one, as `/predict` takes several."""
    return given[0] if isinstance(given, list) and len(given) == 1 else given


def _top(asked: PredictRequest) -> int | None:
    top = (asked.parameters or {}).get("top_k")
    return top if type(top) is int and top > 0 else None


def _prompt(processor: Processor, name: str | None) -> str:
    """Return a prompt by name. Raises RequestError for one that the model does not have."""
    if name is None:
        return ""
    text = processor.text
    prompts = text.description.prompts if text else {}
    if name not in prompts:
        raise RequestError(f"the model has no prompt `{name}`", hint="it has " + (", ".join(prompts) or "none"))
    return prompts[name]


def _rank(asked: RerankRequest, index: int, score: float) -> dict[str, object]:
    return {"index": index, "score": score} | ({"text": asked.texts[index]} if asked.return_text else {})


def _predictions(processor: Processor, scores: Array, top: int | None) -> list[dict[str, object]]:
    answer = processor.description.answer
    assert isinstance(answer, ClassAnswer)  # the model was found by it
    order = np.argsort(-scores, kind="stable")[:top]
    return [{"label": answer.labels[index], "score": float(scores[index])} for index in order]


def _answered(body: object, answer: Answer) -> Response:
    headers = {
        "content-type": "application/json",
        "x-compute-tokens": str(answer.tokens),
        "x-inference-time": str(answer.compute_ns // 1_000_000),
        "x-queue-time": str(answer.queue_ns // 1_000_000),
        **answer_headers(answer),
    }
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), 200, headers)


def _their_errors(route: Route) -> Route:
    """Answer errors in text-embeddings-inference's form: `{"error", "error_type"}`."""

    @wraps(route)
    async def answered(request: Request) -> Response:
        try:
            return await route(request)
        except Exception as error:
            usual = error_answer(error)
            known = next((ERRORS[base] for base in type(error).__mro__ if base in ERRORS), (500, "Backend"))
            body = {"error": orjson.loads(usual.body)["error"], "error_type": known[1]}
            return Response(orjson.dumps(body), known[0], usual.headers)

    return answered
