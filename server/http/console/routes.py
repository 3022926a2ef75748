"""Paths of the console: the page at `/`, its files, its events, and what it shows of single models."""

from __future__ import annotations

from pathlib import Path

import msgspec
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from demi.server.http.asgi import read_body, read_headers
from demi.server.http.console import headers
from demi.server.http.console.bundle_facts import plan_changes, plan_nodes, report_page, version_facts
from demi.server.http.console.commands import commands
from demi.server.http.console.events import Events
from demi.server.http.console.try_form import make_form
from demi.server.http.console.try_it import try_model
from demi.server.http.sign_in import has_key
from demi.server.memory_limit import MemoryLimit
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings
from demi.server.telemetry.recorder import Recorder
from demi.server.threads import in_thread

STATIC = Path(__file__).parent / "static"
"""Files of the page; those in `vendor` are libraries, bundled by `npm/bundle.mjs`."""

MODEL = "/console/models/{model}/versions/{version}"


def add_console(
    app: FastAPI, repository: Repository, settings: ServeSettings, recorder: Recorder, memory_limit: MemoryLimit
) -> None:
    """Add the console to an application."""
    app.include_router(_live_routes(Events(repository, recorder)))
    app.include_router(_model_routes(repository, settings, memory_limit))
    needs_key = settings.api_key_file is not None
    app.mount("/console/assets", StaticFiles(directory=STATIC))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """Return the page, which loads everything else."""
        return FileResponse(STATIC / "index.html", headers=headers.CONSOLE)

    @app.get("/console/session", include_in_schema=False)
    async def session(request: Request) -> Response:
        """Return whether the page can sign out: a key is needed, and a session stands for it."""
        by_cookie = needs_key and not has_key(read_headers(request.scope))
        return _json(msgspec.json.encode({"signed_in": by_cookie}))


def _live_routes(events: Events) -> APIRouter:
    """Return the paths of what changes all the time."""
    router = APIRouter(include_in_schema=False)

    @router.get("/console/events")
    async def stream(model: str = "", version: str = "") -> Response:
        """Stream changed cards, and the points of one model version, as server-sent events."""
        events.check_room()
        no_buffering = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(events.stream(model, version), media_type="text/event-stream", headers=no_buffering)

    @router.get("/console/models")
    async def snapshot() -> Response:
        """Return the cards of all models."""
        return _json(events.snapshot())

    return router


def _model_routes(repository: Repository, settings: ServeSettings, memory_limit: MemoryLimit) -> APIRouter:
    """Return the paths of one model."""
    router = APIRouter(include_in_schema=False)

    @router.get(MODEL + "/plan")
    async def plan(model: str, version: str) -> Response:
        """Return the nodes of the graph with their decisions."""
        found = repository.find(model, version)
        return _json(await in_thread(lambda: msgspec.json.encode(plan_nodes(found))))

    @router.get(MODEL + "/report.html")
    async def report(model: str, version: str) -> Response:
        """Return the page of the bundle's export."""
        found = repository.find(model, version)
        page = await in_thread(lambda: report_page(found))
        return Response(page, media_type="text/html", headers=headers.REPORT)

    @router.get("/console/models/{model}/versions")
    async def versions(model: str) -> Response:
        """Return what the bundles of all versions of a model say, oldest first."""
        repository.find(model)
        found = [repository.find(model, version) for version in repository.versions(model)]
        return _json(await in_thread(lambda: msgspec.json.encode([version_facts(each) for each in found])))

    @router.get("/console/models/{model}/changes")
    async def changes(model: str, was: str, now: str) -> Response:
        """Return the nodes whose decisions differ between two versions."""
        before, after = repository.find(model, was), repository.find(model, now)
        return _json(await in_thread(lambda: msgspec.json.encode(plan_changes(before, after))))

    @router.get(MODEL + "/commands")
    async def examples(request: Request, model: str, version: str) -> Response:
        """Return commands that send a request to a model."""
        found = repository.find(model, version)
        needs_key = settings.api_key_file is not None
        return _json(msgspec.json.encode(commands(found, str(request.base_url), needs_key=needs_key)))

    @router.get(MODEL + "/try")
    async def form(model: str, version: str) -> Response:
        """Return the inputs of a model, and golden inputs to begin with."""
        found = repository.find(model, version)
        found.check_ready()
        return _json(await in_thread(lambda: msgspec.json.encode(make_form(found))))

    @router.post(MODEL + "/try")
    async def answer(request: Request, model: str, version: str, golden: int | None = None) -> Response:
        """Answer a request in both precisions."""
        found = repository.find(model, version)
        sent = read_headers(request.scope)
        with memory_limit.reserve() as reservation:
            body = await read_body(request.receive, sent, settings.max_body_bytes, reservation)
            tried = await try_model(found, body, golden, settings)
        return _json(msgspec.json.encode(tried))

    return router


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})
