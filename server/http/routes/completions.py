"""OpenAI's `/v1/completions`: greedy, as a whole or as a stream of server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.generation.generator import Piece, Prompt
from demi.processing.prepared import RawRows
from demi.server.errors import RequestError
from demi.server.http.answer import error_answer
from demi.server.http.event_stream import EventStream, begun, event, unless_gone, until_gone
from demi.server.http.openapi import json_body
from demi.server.http.raw_requests import RawRequests
from demi.server.http.routes.openai import ERRORS, JSON, openai_error, openai_errors, rows_of
from demi.server.models.generation import GenerateRequest, generator_of, read_options
from demi.server.models.model import Model
from demi.server.request_ids import make_id

USUAL_TOKENS = 16
"""OpenAI's default of `max_tokens`."""

GREEDY_ONLY: dict[str, Sequence[object]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "temperature": (None, 0, 0.0),
    "logprobs": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
}
"""Fields that would choose other tokens or show more than the text, and the values that change nothing."""


class StreamOptions(msgspec.Struct):
    """`include_usage`: a last event with the number of tokens."""

    include_usage: bool | None = None


class CompletionRequest(msgspec.Struct):
    """The body of `/v1/completions`; `prompt` is a text, its token ids, or a list of either. `truncate` is an extension."""

    model: str
    prompt: str | list[Any]
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncate: bool | None = None
    n: Any = None
    best_of: Any = None
    temperature: Any = None
    logprobs: Any = None
    suffix: Any = None
    echo: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One request in progress: what its answers have in common."""

    model: Model
    prompts: Sequence[Prompt]
    id: str
    created: int
    """Seconds since 1970-01-01 UTC."""

    def body(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """Return an answer, or an event of one, as JSON."""
        named = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model.name}
        return orjson.dumps({**named, "choices": choices, **more})

    def usage(self, tokens: int) -> dict[str, int]:
        """Return the account of a request that generated so many tokens."""
        prompt = sum(prompt.count for prompt in self.prompts)
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def completion_routes(requests: RawRequests) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["openai"])
    body = json_body({"model": {"type": "string"}, "prompt": {}, "max_tokens": {"type": "integer"}}, "model", "prompt")

    @router.post("/v1/completions", openapi_extra=body, responses=ERRORS, response_class=Response)
    @openai_errors
    @unless_gone
    async def completions(request: Request) -> Response:
        """Continue texts by the most probable tokens."""
        async with requests.body(request) as data:
            asked = requests.decode(data, CompletionRequest)
            _check_greedy(asked)
            model = requests.find_generator(request, asked.model)
            if generator_of(model).inputs != ("text",):
                raise RequestError(
                    f"model `{model.name}` generates from sound, not from text",
                    hint="ask it with /v1/audio/transcriptions",
                )
            options = read_options(USUAL_TOKENS if asked.max_tokens is None else asked.max_tokens, asked.stop)
            raw = RawRows(rows_of(asked.prompt, "prompt"), truncate=bool(asked.truncate))
            prompts = await requests.generations.prepare(generator_of(model), raw)
        completion = Completion(model, prompts, f"cmpl-{make_id()}", int(time.time()))
        wanted = GenerateRequest(raw, options, requests.timeout_s)
        pieces = requests.generations.generate(model, prompts, wanted)
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return EventStream(_events(completion, await begun(pieces, request), usage=usage))
        return Response(await until_gone(_whole(completion, pieces), request), 200, {"content-type": JSON})

    return router


def _check_greedy(asked: CompletionRequest) -> None:
    """Raise RequestError for a field that asks for another choice of tokens than the most probable ones."""
    for name, plain in GREEDY_ONLY.items():
        if (value := getattr(asked, name)) not in plain:
            raise RequestError(
                f"`{name}` is {value!r}, but texts are generated greedily, one for each prompt",
                hint=f"leave out `{name}`",
            )


async def _whole(completion: Completion, pieces: AsyncGenerator[tuple[int, Piece], None]) -> bytes:
    texts = ["" for _ in completion.prompts]
    last: dict[int, Piece] = {}
    async with aclosing(pieces):
        async for place, piece in pieces:
            texts[place] += piece.text
            last[place] = piece
    choices = [_choice(place, text, last[place].finish) for place, text in enumerate(texts)]
    return completion.body(choices, usage=completion.usage(sum(piece.tokens for piece in last.values())))


async def _events(
    completion: Completion, pieces: AsyncGenerator[tuple[int, Piece], None], *, usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield an event for each piece with text, one for the account if it is wanted, and the last one; or one for an error."""
    tokens: dict[int, int] = {}
    async with aclosing(pieces):
        try:
            async for place, piece in pieces:
                tokens[place] = piece.tokens
                if piece.text or piece.finish:
                    yield event(completion.body([_choice(place, piece.text, piece.finish)]))
            if usage:
                yield event(completion.body([], usage=completion.usage(sum(tokens.values()))))
            yield event(b"[DONE]")
        except Exception as error:
            yield event(openai_error(error, error_answer(error)))


def _choice(place: int, text: str, finish: str) -> dict[str, Any]:
    return {"index": place, "text": text, "finish_reason": finish or None, "logprobs": None}
