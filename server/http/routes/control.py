"""Loading and unloading models over HTTP, where the settings allow it."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.server.errors import RequestError
from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.models import BAD, UNKNOWN
from demi.server.models.control import Control, allowed, check_control_parameters
from demi.server.protocol.schemas import ControlRequest, ErrorBody

FORBIDDEN: dict[int | str, dict[str, Any]] = {403: {"model": ErrorBody, "description": "Not allowed by the settings"}}


def control_routes(control: Control | None) -> APIRouter:
    """Load and unload; without a control both say that this is not allowed."""
    router = APIRouter(tags=["models"])
    documented: dict[str, Any] = {
        "responses": FORBIDDEN | BAD | UNKNOWN,
        "response_class": Response,
        "openapi_extra": json_body({"parameters": {"type": "object"}}),
    }

    async def read(request: Request) -> Control:
        granted = allowed(control)
        body = await read_small_body(request)
        check_control_request(body)
        return granted

    @router.post("/v2/repository/models/{model}/load", **documented)
    async def load(model: str, request: Request) -> Response:
        """Serve what is on disk under this name now; answered once it is ready."""
        await (await read(request)).load(model)
        return Response()

    @router.post("/v2/repository/models/{model}/unload", **documented)
    async def unload(model: str, request: Request) -> Response:
        """Take a model out of service; answered once it has answered what it had admitted."""
        await (await read(request)).unload(model)
        return Response()

    return router


def check_control_request(body: bytes) -> None:
    """Raise RequestError unless a body is empty or a JSON object that asks for nothing that is not offered here."""
    if not body.strip():
        return
    try:
        parameters = msgspec.json.decode(body, type=ControlRequest).parameters or {}
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RequestError(f"the request is not as the protocol has it: {error}") from error
    check_control_parameters(parameters)
