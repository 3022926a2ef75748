"""`POST /v2/models/NAME[/versions/VERSION]/infer`, as plain ASGI without FastAPI.

A FastAPI route would cost three quarters of the throughput here, and pydantic nine tenths. `openapi.py` documents the path
by hand.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from demi.server.errors import MethodError
from demi.server.http.answer import HttpAnswer, error_answer
from demi.server.http.asgi import raw_path, read_body, read_headers, send_answer, wait_for_disconnect
from demi.server.http.compression import MIN_COMPRESSED_BYTES, check_encoding, choose_encoding, deflate, inflate
from demi.server.http.target import infer_target
from demi.server.http.types import Headers, ReadBody, Target
from demi.server.memory_limit import NO_LIMIT, MemoryLimit, Reservation
from demi.server.models.inference import infer
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.answer import Answer, answer_headers
from demi.server.protocol.body import read_request, write_answer
from demi.server.protocol.request import InferRequest
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY, SharedMemory
from demi.server.request_ids import sent_id, valid_id
from demi.server.scheduling.deadlines import Gone
from demi.server.settings import ServeSettings
from demi.server.telemetry.tracing import InferenceRecord, Tracer
from demi.server.threads import OFF_LOOP_BYTES, in_thread


class InferCall(msgspec.Struct):
    """One infer request in progress, and what is known about it so far."""

    name: str
    version: str | None
    headers: Headers
    started_ns: int
    """Nanoseconds since the epoch; 0 without a tracer."""
    reservation: Reservation | None = None
    model: Model | None = None
    request: InferRequest | None = None
    answer: Answer | None = None

    @property
    def id(self) -> str:
        """The client's request id, from the header, else from the body; empty if there is none."""
        return sent_id(self.headers) or (valid_id(self.request.id) if self.request else "")


class InferApp:
    """Answers infer requests of any method, and passes all others on to `rest`."""

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        rest: ASGIApp,
        memory: SharedMemory = NO_SHARED_MEMORY,
        tracer: Tracer | None = None,
        memory_limit: MemoryLimit = NO_LIMIT,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._rest = rest
        self._memory = memory
        self._tracer = tracer
        self._memory_limit = memory_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request over ASGI."""
        target = infer_target(raw_path(scope)) if scope["type"] == "http" else None
        if target is None:
            await self._rest(scope, receive, send)
            return
        headers = read_headers(scope)
        with self._memory_limit.reserve() as reservation:
            body = partial(read_body, receive, headers, self._settings.max_body_bytes, reservation)
            if answer := await self.respond(
                scope["method"], target, headers, body, wait_for_disconnect(receive), reservation
            ):
                await send_answer(send, answer)

    async def respond(
        self,
        method: str,
        target: Target,
        headers: Headers,
        read_body: ReadBody,
        gone: Gone,
        reservation: Reservation | None = None,
    ) -> HttpAnswer | None:
        """Return the answer to one request, which may be an error; None if the client has disconnected.

        The reservation counts the bytes of a decompressed body; it may be None for small, uncompressed bodies.
        """
        call = InferCall(*target, headers, time.time_ns() if self._tracer else 0, reservation)
        try:
            answer = await self._answer(call, method, read_body, gone)
        except ClientDisconnect:
            return None
        except Exception as error:  # every failure gets an answer, an unexpected one 500
            answer = error_answer(error, call.id)
        if self._tracer:  # recorded once the answer has been written
            asyncio.get_running_loop().call_soon(_trace, self._tracer, call, answer.status)
        return answer

    async def _answer(self, call: InferCall, method: str, read_body: ReadBody, gone: Gone) -> HttpAnswer:
        """Find the model, admit the request, read it, infer, write the answer."""
        if method != "POST":
            raise MethodError("inference requests are sent with POST", allow="POST")
        headers = call.headers
        model = call.model = self._repository.route(call.name, call.version, partial(_named_header, headers))
        with model.admitted():
            body = await read_body()
            encoding = check_encoding(_header(headers, b"content-encoding"))
            if encoding or len(body) > OFF_LOOP_BYTES or self._memory.in_use:
                request = await in_thread(partial(self._read, body, encoding, call, model))
            else:
                request = self._read(body, encoding, call, model)
            call.request = request
            answer = call.answer = await infer(model, request, self._timeout_s(request), gone)
            encoding = choose_encoding(_header(headers, b"accept-encoding"))
            if _is_large(answer, encoding):
                return await in_thread(partial(self._write, request, answer, encoding, headers, model))
            return self._write(request, answer, encoding, headers, model)

    def _read(self, body: bytes, encoding: str, call: InferCall, model: Model) -> InferRequest:
        settings = self._settings
        if encoding:
            body = inflate(body, encoding, settings.max_body_bytes, call.reservation)
        length = _header(call.headers, b"inference-header-content-length") or None
        return read_request(body, length, model.signature, self._memory, model.headers, settings.max_parsed_bytes)

    def _write(
        self, request: InferRequest, answer: Answer, encoding: str, headers: Headers, model: Model
    ) -> HttpAnswer:
        written = write_answer(model.name, model.version, request, answer, model.signature, self._settings.non_finite)
        return _make_answer(written.body, written.header_length, encoding, answer_headers(answer, sent_id(headers)))

    def _timeout_s(self, request: InferRequest) -> float:
        return request.timeout_us / 1e6 if request.timeout_us else self._settings.timeout_s


def _trace(tracer: Tracer, call: InferCall, status: int) -> None:
    model = call.model
    attributes: dict[str, str | int] = {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": status,
        "demi.request_id": call.id,
    }
    record = InferenceRecord(
        model=model.name if model else call.name,
        version=model.version if model else call.version or "",
        started_ns=call.started_ns,
        ended_ns=time.time_ns(),
        attributes=attributes,
        answer=call.answer,
        failed=status >= 500,
    )
    tracer.record(record, _header(call.headers, b"traceparent"), _header(call.headers, b"tracestate"))


def _make_answer(body: bytes, header_length: int | None, encoding: str, headers: dict[str, str]) -> HttpAnswer:
    if header_length is None:
        headers["content-type"] = "application/json"
    else:
        headers |= {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(header_length),
        }
    if encoding and len(body) >= MIN_COMPRESSED_BYTES:
        body = deflate(body, encoding)
        headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
    return HttpAnswer(200, body, headers)


def _is_large(answer: Answer, encoding: str) -> bool:
    size = sum([values.nbytes for values in answer.outputs.values()])
    return size > OFF_LOOP_BYTES or (bool(encoding) and size > MIN_COMPRESSED_BYTES)


def _named_header(headers: Headers, name: str) -> str | None:
    value = headers.get(name.encode("latin-1"))
    return None if value is None else value.decode("latin-1")


def _header(headers: Headers, name: bytes) -> str:
    value = headers.get(name)
    return value.decode("latin-1") if value else ""
