"""`POST /v2/models/NAME[/versions/VERSION]/infer`: the hot path, plain ASGI beside FastAPI.

A FastAPI route costs three quarters of the requests per second here, and pydantic nine tenths: so this path has
neither, and `openapi.py` documents it by hand.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from urllib.parse import unquote_to_bytes

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from demi.server.errors import HttpAnswer, MethodError, error_answer
from demi.server.http.asgi import gone, read_body, read_headers, send_answer
from demi.server.http.compression import SMALLEST, check_encoding, choose_encoding, deflate, inflate
from demi.server.http.types import Headers, ReadBody, Target
from demi.server.memory_limit import NO_LIMIT, InFlight, Lease
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.answer import Answer, answer_headers
from demi.server.protocol.body import read_request, write_answer
from demi.server.protocol.request import InferRequest
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY, SharedMemory
from demi.server.request_ids import fit_id, sent_id
from demi.server.scheduling.deadlines import Gone
from demi.server.settings import ServeSettings
from demi.server.telemetry.tracing import Inference, Tracer
from demi.server.threads import OFF_LOOP_BYTES, in_thread


@dataclass(slots=True)
class Exchange:
    """One infer request on its way: who asks for what, and what is known of it so far."""

    name: str
    version: str | None
    headers: Headers
    started_ns: int
    """Since the epoch; 0 where nobody traces."""
    lease: Lease | None = None
    model: Model | None = None
    request: InferRequest | None = None
    answer: Answer | None = None

    @property
    def id(self) -> str:
        """The client's own id for it: from the header, else from the body; empty for none."""
        return sent_id(self.headers) or (fit_id(self.request.id) if self.request else "")


class InferApp:
    """Answers infer requests, of any method, and hands every other request on to `rest`."""

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        rest: ASGIApp,
        memory: SharedMemory = NO_SHARED_MEMORY,
        tracer: Tracer | None = None,
        in_flight: InFlight = NO_LIMIT,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._rest = rest
        self._memory = memory
        self._tracer = tracer
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        target = infer_target(scope) if scope["type"] == "http" else None
        if target is None:
            await self._rest(scope, receive, send)
            return
        headers = read_headers(scope)
        with self._in_flight.lease() as lease:
            body = partial(read_body, receive, headers, self._settings.max_body_bytes, lease)
            if answer := await self.respond(scope["method"], target, headers, body, gone(receive), lease):
                await send_answer(send, answer)

    async def respond(
        self,
        method: str,
        target: Target,
        headers: Headers,
        read_body: ReadBody,
        gone: Gone,
        lease: Lease | None = None,
    ) -> HttpAnswer | None:
        """The answer to one request, an error where it comes to that; None when the client has left.

        The lease takes room for a body that is unpacked; one that comes without is small and plain.
        """
        exchange = Exchange(*target, headers, time.time_ns() if self._tracer else 0, lease)
        try:
            answer = await self._answer(exchange, method, read_body, gone)
        except ClientDisconnect:
            return None
        except Exception as error:  # every failure has an answer, and 500 is one of them
            answer = error_answer(error, exchange.id)
        if self._tracer:  # once the answer has been written
            asyncio.get_running_loop().call_soon(_trace, self._tracer, exchange, answer.status)
        return answer

    async def _answer(self, exchange: Exchange, method: str, read_body: ReadBody, gone: Gone) -> HttpAnswer:
        """The story of one request: find, admit, read, infer, write."""
        if method != "POST":
            raise MethodError("inference requests are sent with POST", allow="POST")
        headers = exchange.headers
        model = exchange.model = self._repository.find(exchange.name, exchange.version)
        with model.admitted():
            body = await read_body()
            encoding = check_encoding(_text(headers, b"content-encoding"))
            is_large = encoding or len(body) > OFF_LOOP_BYTES or self._memory.in_use
            read = partial(self._read, body, encoding, exchange, model)
            request = exchange.request = await in_thread(read) if is_large else read()
            answer = exchange.answer = await model.infer(
                request.feeds, request.output_names, self._timeout_s(request), gone, request.wish, request.id
            )
            encoding = choose_encoding(_text(headers, b"accept-encoding"))
            write = partial(self._write, request, answer, encoding, headers, model)
            return await in_thread(write) if _is_large(answer, encoding) else write()

    def _read(self, body: bytes, encoding: str, exchange: Exchange, model: Model) -> InferRequest:
        settings = self._settings
        if encoding:
            body = inflate(body, encoding, settings.max_body_bytes, exchange.lease)
        length = _text(exchange.headers, b"inference-header-content-length") or None
        return read_request(body, length, model.signature, self._memory, model.heads, settings.max_parsed_bytes)

    def _write(
        self, request: InferRequest, answer: Answer, encoding: str, headers: Headers, model: Model
    ) -> HttpAnswer:
        written = write_answer(model.name, model.version, request, answer, model.signature, self._settings.non_finite)
        return _http_answer(written.body, written.header_length, encoding, answer_headers(answer, sent_id(headers)))

    def _timeout_s(self, request: InferRequest) -> float:
        return request.timeout_us / 1e6 if request.timeout_us else self._settings.timeout_s


def infer_target(scope: Scope) -> Target | None:
    """Model and version of an infer path, each percent-decoded once; None for any other path.

    The undecoded path is split, so that `%2F` in a name is a slash in a name and not a new segment.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    if not raw.endswith(b"/infer"):
        return None
    match raw.split(b"/"):
        case [b"", b"v2", b"models", name, b"infer"]:
            return _decoded(name), None
        case [b"", b"v2", b"models", name, b"versions", version, b"infer"]:
            return _decoded(name), _decoded(version)
        case _:
            return None


def _trace(tracer: Tracer, exchange: Exchange, status: int) -> None:
    model = exchange.model
    attributes: dict[str, str | int] = {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": status,
        "demi.request_id": exchange.id,
    }
    inference = Inference(
        model=model.name if model else exchange.name,
        version=model.version if model else exchange.version or "",
        started_ns=exchange.started_ns,
        ended_ns=time.time_ns(),
        attributes=attributes,
        answer=exchange.answer,
        failed=status >= 500,
    )
    tracer.record(inference, _text(exchange.headers, b"traceparent"), _text(exchange.headers, b"tracestate"))


def _http_answer(body: bytes, header_length: int | None, encoding: str, headers: dict[str, str]) -> HttpAnswer:
    if header_length is None:
        headers["content-type"] = "application/json"
    else:
        headers |= {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(header_length),
        }
    if encoding and len(body) >= SMALLEST:
        body = deflate(body, encoding)
        headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
    return HttpAnswer(200, body, headers)


def _is_large(answer: Answer, encoding: str) -> bool:
    size = sum(values.nbytes for values in answer.outputs.values())
    return size > OFF_LOOP_BYTES or (bool(encoding) and size > SMALLEST)


def _decoded(segment: bytes) -> str:
    return unquote_to_bytes(segment).decode("utf-8", "replace")


def _text(headers: Headers, name: bytes) -> str:
    value = headers.get(name)
    return value.decode("latin-1") if value else ""
