"""Load and unload models over HTTP, if the settings allow it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.responses import BAD, FORBIDDEN, UNKNOWN
from demi.server.models.control import ModelControl, allowed, version_parameter
from demi.server.protocol.json_body import decode_json
from demi.server.protocol.schemas import ControlRequest


def control_routes(control: ModelControl | None) -> APIRouter:
    """Return the routes to load and unload a model; without a control they answer that this is not allowed."""
    router = APIRouter(tags=["models"])
    documented: dict[str, Any] = {
        "responses": FORBIDDEN | BAD | UNKNOWN,
        "response_class": Response,
        "openapi_extra": json_body({"parameters": {"type": "object", "properties": {"version": {"type": "string"}}}}),
    }

    async def version_in(request: Request) -> str | None:
        allowed(control)
        asked = decode_json(await read_small_body(request), ControlRequest, empty=ControlRequest())
        return version_parameter(asked.parameters or {})

    @router.post("/v2/repository/models/{model}/load", **documented)
    async def load(model: str, request: Request) -> Response:
        """Load or reload a model from disk, or one version of it; answers once it is ready."""
        version = await version_in(request)
        await allowed(control).load(model, version)
        return Response()

    @router.post("/v2/repository/models/{model}/versions/{version}/load", **documented)
    async def load_version(model: str, version: str) -> Response:
        """Load or reload one version of a model from disk; answers once it is ready."""
        await allowed(control).load(model, version)
        return Response()

    @router.post("/v2/repository/models/{model}/unload", **documented)
    async def unload(model: str, request: Request) -> Response:
        """Unload a model, or one version of it; answers once the requests it has admitted are answered."""
        version = await version_in(request)
        await allowed(control).unload(model, version)
        return Response()

    @router.post("/v2/repository/models/{model}/versions/{version}/unload", **documented)
    async def unload_version(model: str, version: str) -> Response:
        """Unload one version of a model; answers once the requests it has admitted are answered."""
        await allowed(control).unload(model, version)
        return Response()

    return router
