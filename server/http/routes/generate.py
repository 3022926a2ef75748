"""Triton's generate extension: `/v2/models/NAME/generate`, and `/generate_stream` with server-sent events."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.generation.generator import Piece
from demi.processing.prepared import RawRows
from demi.server.errors import RequestError
from demi.server.http.answer import error_answer
from demi.server.http.event_stream import EventStream, begun, event, unless_gone, until_gone
from demi.server.http.openapi import json_body
from demi.server.http.raw_requests import RawRequests
from demi.server.http.routes.responses import BAD, FAILED, LATE, NOT_READY, TOO_LARGE, UNKNOWN
from demi.server.models.generation import GenerateRequest, generator_of, read_options
from demi.server.models.model import Model
from demi.server.protocol.raw_body import looks_like_json
from demi.server.request_ids import sent_id, valid_id

JSON = {"content-type": "application/json"}

RESPONSES = {**BAD, **UNKNOWN, **TOO_LARGE, **FAILED, **NOT_READY, **LATE}


class Parameters(msgspec.Struct):
    """The parameters of a request; they may also be in the body itself, as some of Triton's backends have them."""

    max_tokens: int | None = None
    stop: str | list[str] | None = None
    truncate: bool | None = None
    language: str | None = None
    timeout: int | None = None
    """Deadline in microseconds, as for infer requests."""
    stream: bool | None = None
    """Ignored: the path decides."""


class GenerateBody(Parameters):
    """The body of a request: a text, or a sound as base64."""

    text_input: str | None = None
    audio_input: str | None = None
    id: str = ""
    parameters: Parameters | None = None


def generate_routes(requests: RawRequests) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["generation"])
    documented = json_body(
        {"text_input": {"type": "string"}, "parameters": {"type": "object"}, "max_tokens": {"type": "integer"}}
    )

    async def generate(request: Request, model: str, version: str | None = None) -> Response:
        """Return the text that a model generates for `text_input` (or `audio_input`), as a whole."""
        found, asked, pieces = await _begin(requests, request, model, version)
        text = await until_gone(_whole(pieces), request)
        return Response(_answer(found, asked, text), 200, JSON)

    async def generate_stream(request: Request, model: str, version: str | None = None) -> Response:
        """Return the text as it is generated: an event for each piece, with its part of the text in `text_output`."""
        found, asked, pieces = await _begin(requests, request, model, version)
        return EventStream(_events(found, asked, await begun(pieces, request), request))

    for place in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        for name, route in (("generate", generate), ("generate_stream", generate_stream)):
            router.add_api_route(
                f"{place}/{name}",
                unless_gone(route),
                methods=["POST"],
                response_class=Response,
                openapi_extra=documented,
                responses=RESPONSES,
                operation_id=f"{name}_of_version" if "version}" in place else name,
            )
    return router


async def _begin(
    requests: RawRequests, request: Request, name: str, version: str | None
) -> tuple[Model, GenerateRequest, AsyncGenerator[tuple[int, Piece], None]]:
    """Read a request; return its model and the pieces of its text, of which none is generated yet."""
    async with requests.body(request) as body:
        model = requests.find_generator(request, name, version)
        asked = _read(requests, request, model, body)
        prompts = await requests.generations.prepare(generator_of(model), asked.raw)
    return model, asked, requests.generations.generate(model, prompts, asked)


def _read(requests: RawRequests, request: Request, model: Model, body: bytes) -> GenerateRequest:
    (name,) = generator_of(model).inputs
    if name == "audio" and not looks_like_json(body):
        return GenerateRequest(RawRows((body,)), timeout_s=requests.timeout_s)
    asked = requests.decode(body, GenerateBody)
    given = asked.parameters or Parameters()
    row = asked.text_input if name == "text" else _sound(asked.audio_input)
    if row is None:
        raise RequestError(f"`{name}_input` is missing", hint=f"model `{model.name}` generates from {name}")
    limit = given.max_tokens if asked.max_tokens is None else asked.max_tokens
    timeout = asked.timeout or given.timeout
    return GenerateRequest(
        RawRows((row,), truncate=bool(asked.truncate or given.truncate)),
        read_options(limit, asked.stop or given.stop, asked.language or given.language),
        timeout / 1e6 if timeout else requests.timeout_s,
        id=sent_id(dict(request.scope["headers"])) or valid_id(asked.id),
    )


def _sound(encoded: str | None) -> bytes | None:
    try:
        return None if encoded is None else base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise RequestError(
            f"`audio_input` is not base64: {error}", hint="encode the bytes of a WAV or FLAC file"
        ) from error


async def _whole(pieces: AsyncGenerator[tuple[int, Piece], None]) -> str:
    async with aclosing(pieces) as items:
        return "".join([piece.text async for _, piece in items])


async def _events(
    model: Model, asked: GenerateRequest, pieces: AsyncGenerator[tuple[int, Piece], None], request: Request
) -> AsyncGenerator[bytes, None]:
    """Yield an event for each piece with text, and one for an error."""
    async with aclosing(pieces):
        try:
            async for _, piece in pieces:
                if piece.text or piece.finish:
                    yield event(_answer(model, asked, piece.text))
        except Exception as error:
            yield event(error_answer(error, asked.id).body)


def _answer(model: Model, asked: GenerateRequest, text: str) -> bytes:
    named: dict[str, Any] = {"id": asked.id} if asked.id else {}
    return orjson.dumps(named | {"model_name": model.name, "model_version": model.version, "text_output": text})
