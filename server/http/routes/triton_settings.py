"""Triton's trace and log settings over HTTP, read-only."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.responses import BAD, FORBIDDEN, UNKNOWN
from demi.server.models.repository import Repository
from demi.server.protocol.json_body import decode_json
from demi.server.settings import ServeSettings
from demi.server.telemetry.triton_settings import check_unchanged, log_settings, trace_settings


def triton_settings_routes(repository: Repository, settings: ServeSettings) -> APIRouter:
    """Return the routes that report the settings of the server (the same for each model) and refuse changes."""
    router = APIRouter(tags=["settings"])
    traces, one, logs = "/v2/trace/setting", "/v2/models/{model}/trace/setting", "/v2/logging"
    refusing: dict[str, Any] = {"responses": FORBIDDEN | BAD | UNKNOWN, "openapi_extra": json_body({})}

    async def asked(request: Request) -> dict[str, Any]:
        return decode_json(await read_small_body(request), dict[str, Any], empty={})

    @router.get(traces, responses=UNKNOWN)
    @router.get(one, responses=UNKNOWN)
    async def read_traces(model: str | None = None) -> dict[str, Any]:
        """Return the trace settings, which are the same for all models."""
        if model is not None:
            repository.find(model)
        return trace_settings(settings)

    @router.post(traces, **refusing)
    @router.post(one, **refusing)
    async def change_traces(request: Request, model: str | None = None) -> dict[str, Any]:
        """Return the trace settings if the request would not change them, else refuse."""
        if model is not None:
            repository.find(model)
        own = trace_settings(settings)
        check_unchanged("trace", await asked(request), own)
        return own

    @router.get(logs)
    async def read_logs() -> dict[str, Any]:
        """Return the log settings."""
        return log_settings(settings)

    @router.post(logs, **refusing)
    async def change_logs(request: Request) -> dict[str, Any]:
        """Return the log settings if the request would not change them, else refuse."""
        own = log_settings(settings)
        check_unchanged("log", await asked(request), own)
        return own

    return router
