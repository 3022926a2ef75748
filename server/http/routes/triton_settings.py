"""Trace and log settings over HTTP: to be read."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.control import FORBIDDEN
from demi.server.http.routes.models import BAD, UNKNOWN
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings
from demi.server.telemetry.triton_settings import (
    check_unchanged,
    log_settings,
    read_settings,
    trace_settings,
)


def own_settings_routes(repository: Repository, settings: ServeSettings) -> APIRouter:
    """The settings of the server, also under the name of a model; what would change one is refused."""
    router = APIRouter(tags=["settings"])
    traces, one, logs = "/v2/trace/setting", "/v2/models/{model}/trace/setting", "/v2/logging"
    refusing: dict[str, Any] = {"responses": FORBIDDEN | BAD | UNKNOWN, "openapi_extra": json_body({})}

    async def asked(request: Request) -> dict[str, Any]:
        return read_settings(await read_small_body(request))

    @router.get(traces, responses=UNKNOWN)
    @router.get(one, responses=UNKNOWN)
    async def read_traces(model: str | None = None) -> dict[str, Any]:
        """What is traced: the same for every model."""
        if model is not None:
            repository.find(model)
        return trace_settings(settings)

    @router.post(traces, **refusing)
    @router.post(one, **refusing)
    async def change_traces(request: Request, model: str | None = None) -> dict[str, Any]:
        """What is traced, where a request changes nothing of it; else it is refused."""
        if model is not None:
            repository.find(model)
        own = trace_settings(settings)
        check_unchanged("trace", await asked(request), own)
        return own

    @router.get(logs)
    async def read_logs() -> dict[str, Any]:
        """What is logged."""
        return log_settings(settings)

    @router.post(logs, **refusing)
    async def change_logs(request: Request) -> dict[str, Any]:
        """What is logged, where a request changes nothing of it; else it is refused."""
        own = log_settings(settings)
        check_unchanged("log", await asked(request), own)
        return own

    return router
