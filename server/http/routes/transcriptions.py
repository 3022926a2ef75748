"""OpenAI's `/v1/audio/transcriptions`: the text of a sound, for bundles of Whisper; as a whole or as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.generation.generator import Piece, Prompt
from demi.processing.prepared import RawRows
from demi.server.errors import RequestError
from demi.server.http.answer import error_answer
from demi.server.http.event_stream import EventStream, begun, event, unless_gone, until_gone
from demi.server.http.forms import Form, read_form
from demi.server.http.openapi import form_body
from demi.server.http.raw_requests import RawRequests
from demi.server.http.routes.openai import ERRORS, JSON, openai_error, openai_errors
from demi.server.models.generation import GenerateRequest, generator_of, read_options
from demi.server.models.model import Model
from demi.server.threads import OFF_LOOP_BYTES, in_thread

FORMATS = ("json", "text", "verbose_json")

UNDETERMINED = "und"
"""The code of a language that is not known, of a model that has no codes (ISO 639-2)."""

UNSUPPORTED: dict[str, Sequence[str]] = {
    "prompt": ("",),
    "temperature": ("", "0", "0.0"),
    "timestamp_granularities[]": (),
    "include[]": (),
    "chunking_strategy": (),
}
"""Fields that would choose other tokens or ask for more than the text, and the values that change nothing."""

Pieces = AsyncGenerator[tuple[int, Piece], None]


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """A form: the sound, and the form of the answer. `truncate` is an extension: it cuts a sound that is too long."""

    sound: RawRows
    model: str | None
    language: str | None
    form: str
    stream: bool


def transcription_routes(requests: RawRequests) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["openai"])
    fields: dict[str, Any] = {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string"},
        "language": {"type": "string"},
        "response_format": {"type": "string", "enum": list(FORMATS)},
        "stream": {"type": "boolean"},
    }

    @router.post(
        "/v1/audio/transcriptions",
        openapi_extra=form_body(fields, "file", "model"),
        responses=ERRORS,
        response_class=Response,
    )
    @openai_errors
    @unless_gone
    async def transcriptions(request: Request) -> Response:
        """Write down what is said in a WAV or FLAC file."""
        async with requests.body(request) as body:
            asked = read_transcription(await _form(body, request.headers.get("content-type", "")))
            model = _find(requests, request, asked.model)
            options = read_options(None, None, asked.language)
            generator_of(model).detects(options)  # raises for an unknown language, before the sound is read
            prompts = await requests.generations.prepare(generator_of(model), asked.sound)
        wanted = GenerateRequest(asked.sound, options, requests.timeout_s)
        pieces = requests.generations.generate(model, prompts, wanted)
        if asked.stream:
            return EventStream(_events(await begun(pieces, request)))
        return await until_gone(_whole(asked, prompts[0], pieces), request)

    return router


def read_transcription(form: Form) -> TranscriptionRequest:
    """Read the fields of a form. Raises RequestError, naming the field that is wrong or not supported."""
    for name, plain in UNSUPPORTED.items():
        if name in form.parts and form.text(name) not in plain:
            raise RequestError(f"`{name}` is not supported: the most probable text is written", hint="leave it out")
    wanted, stream = form.text("response_format") or "json", form.flag("stream")
    if wanted not in FORMATS:
        raise RequestError(
            f"`response_format` is `{wanted[:40]}`, but no times are written", hint=f"use one of {', '.join(FORMATS)}"
        )
    if stream and wanted == "verbose_json":
        raise RequestError("a stream has no verbose form", hint="use `response_format` json, or leave out `stream`")
    return TranscriptionRequest(
        RawRows((form.file("file"),), truncate=form.flag("truncate")),
        form.text("model"),
        form.text("language") or None,
        wanted,
        stream,
    )


async def _form(body: bytes, content_type: str) -> Form:
    if len(body) <= OFF_LOOP_BYTES:
        return read_form(body, content_type)
    return await in_thread(lambda: read_form(body, content_type))


def _find(requests: RawRequests, request: Request, name: str | None) -> Model:
    """Return the model. Raises RequestError for one that writes no text for a sound, else as `find_generator` does."""
    model = requests.find_generator(request, name)
    if generator_of(model).inputs != ("audio",):
        raise RequestError(
            f"model `{model.name}` generates from text, not from sound", hint="ask it with /v1/completions"
        )
    return model


async def _whole(asked: TranscriptionRequest, prompt: Prompt, pieces: Pieces) -> Response:
    text, language = "", ""
    async with aclosing(pieces):
        async for _, piece in pieces:
            text += piece.text
            language = piece.language
    if asked.form == "text":
        return Response(text.strip(), 200, {"content-type": "text/plain; charset=utf-8"})
    content: dict[str, Any] = {"text": text.strip(), "usage": {"type": "duration", "seconds": prompt.seconds}}
    if asked.form == "verbose_json":
        spoken = language or asked.language or UNDETERMINED
        content = {"task": "transcribe", "language": spoken, "duration": prompt.seconds, **content}
    return Response(orjson.dumps(content), 200, {"content-type": JSON})


async def _events(pieces: Pieces) -> AsyncGenerator[bytes, None]:
    """Yield an event for each piece with text, and one for the whole; or one for an error."""
    text = ""
    async with aclosing(pieces):
        try:
            async for _, piece in pieces:
                new = piece.text if text else piece.text.lstrip()
                text += new
                if new:
                    yield event(orjson.dumps({"type": "transcript.text.delta", "delta": new}))
            yield event(orjson.dumps({"type": "transcript.text.done", "text": text.strip()}))
        except Exception as error:
            yield event(openai_error(error, error_answer(error)))
