"""The web application, with every path of the server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from demi.errors import DemiError
from demi.server.errors import MethodError, NotFoundError, RequestError
from demi.server.http.answer import HttpAnswer, error_answer, error_body
from demi.server.http.asgi import read_headers
from demi.server.http.console.routes import add_console
from demi.server.http.example_bodies import example_bodies
from demi.server.http.middleware import AccessControl, with_access_log, with_request_id
from demi.server.http.openapi import add_infer, add_keys, in_order, with_examples
from demi.server.http.origins import Origins
from demi.server.http.raw_requests import RawRequests
from demi.server.http.routes.accuracy import accuracy_routes
from demi.server.http.routes.completions import completion_routes
from demi.server.http.routes.control import control_routes
from demi.server.http.routes.generate import generate_routes
from demi.server.http.routes.health import health_routes
from demi.server.http.routes.infer import InferApp
from demi.server.http.routes.metrics import metrics_routes
from demi.server.http.routes.models import model_routes
from demi.server.http.routes.openai import openai_routes
from demi.server.http.routes.shared_memory import shared_memory_routes
from demi.server.http.routes.statistics import statistics_routes
from demi.server.http.routes.text_embeddings import text_embeddings_routes
from demi.server.http.routes.transcriptions import transcription_routes
from demi.server.http.routes.triton_settings import triton_settings_routes
from demi.server.http.routes.versions import version_routes
from demi.server.http.swagger import docs_routes
from demi.server.http.types import Respond
from demi.server.keys import Keys
from demi.server.memory_limit import NO_LIMIT, MemoryLimit
from demi.server.models.control import ModelControl
from demi.server.models.repository import Repository
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY, SharedMemory
from demi.server.request_ids import sent_id
from demi.server.settings import ServeSettings
from demi.server.telemetry.overview import Overview, OwnOverview
from demi.server.telemetry.recorder import Recorder
from demi.server.telemetry.tracing import Tracer
from demi.version import __version__


def create_app(
    repository: Repository,
    settings: ServeSettings,
    control: ModelControl | None = None,
    memory: SharedMemory = NO_SHARED_MEMORY,
    keys: Keys | None = None,
    tracer: Tracer | None = None,
    origins: Origins | None = None,
    overview: Overview | None = None,
) -> DemiApp:
    """Create the application that serves a repository, which the caller still owns and closes.

    With `keys`, every path except health requires one of them; with a `tracer`, every inference is traced; `origins` checks
    requests from browsers. `overview` answers about all models; by default the repository's own.
    """
    overview = overview or OwnOverview(repository)
    memory_limit = MemoryLimit(settings.max_in_flight_bytes)
    app = DemiApp(
        repository,
        settings,
        memory,
        keys,
        tracer,
        memory_limit,
        origins,
        title="Demi",
        version=__version__,
        description="Half-precision models over the KServe v2 / Open Inference Protocol.",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(health_routes(repository, keys))
    if settings.metrics:
        app.include_router(metrics_routes(overview))
    app.include_router(statistics_routes(overview))  # before the model routes: `/v2/models/stats` is not a model
    app.include_router(model_routes(repository, settings, overview))
    app.include_router(accuracy_routes(repository, settings, overview))
    app.include_router(control_routes(control if settings.allow_model_control else None))
    app.include_router(version_routes(repository, control, changeable=settings.allow_model_control))
    raw_requests = RawRequests(repository, settings, memory_limit)
    app.include_router(openai_routes(raw_requests))
    app.include_router(completion_routes(raw_requests))
    app.include_router(transcription_routes(raw_requests))
    app.include_router(generate_routes(raw_requests))
    app.include_router(text_embeddings_routes(raw_requests))
    app.include_router(shared_memory_routes(memory))
    app.include_router(triton_settings_routes(repository, settings))
    docs_routes(app)
    if settings.console:
        app.recorder = Recorder(repository)
        add_console(app, repository, settings, app.recorder, memory_limit)
    _add_error_handlers(app)
    return app


class DemiApp(FastAPI):
    """A FastAPI application whose infer paths bypass FastAPI but are still documented."""

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        memory: SharedMemory,
        keys: Keys | None = None,
        tracer: Tracer | None = None,
        memory_limit: MemoryLimit = NO_LIMIT,
        origins: Origins | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        app = InferApp(repository, settings, with_request_id(super().__call__), memory, tracer, memory_limit)
        self._keys = keys
        self._repository = repository
        self.recorder: Recorder | None = None
        """Recorder of the models' history, which the console shows; the server starts and stops it."""
        access = AccessControl(keys, origins or Origins(settings.hosts))
        self.respond: Respond | None = None if settings.access_log else access.wrap_respond(app.respond)
        """Answers infer requests on the fast path; None if every request is logged."""
        self._entry = with_access_log(access.wrap_asgi(app), on=settings.access_log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Infer requests bypass FastAPI, whose middleware alone would take a fifth of their time."""
        await self._entry(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document of all paths."""
        document = in_order(with_examples(add_infer(super().openapi()), example_bodies(self._repository)))
        return add_keys(document) if self._keys else document


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every error with the body `{"error": ...}`: Demi's, Starlette's, FastAPI's, and unexpected ones."""
    app.add_exception_handler(DemiError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_error)


async def _on_error(request: Request, error: Exception) -> Response:
    return _response(error_answer(error, sent_id(read_headers(request.scope))))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # the class it is registered for
    path = request.url.path
    if error.status_code == 404:
        return await _on_error(request, NotFoundError(f"no such path: `{path}`", hint="see /docs"))
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        return await _on_error(request, MethodError(f"`{path}` does not support {request.method}", allow))
    headers = {"content-type": "application/json", **(error.headers or {})}
    return _response(HttpAnswer(error.status_code, error_body(error.detail), headers))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    return await _on_error(request, RequestError(f"the request does not follow the protocol: {error}"))


def _response(answer: HttpAnswer) -> Response:
    return Response(answer.body, answer.status, answer.headers)
