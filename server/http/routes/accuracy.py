"""Accuracy of half precision in production, and the share of requests it is measured on."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.server.errors import ForbiddenError
from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.responses import BAD, FORBIDDEN, NOT_READY, UNKNOWN
from demi.server.models.repository import Repository
from demi.server.protocol.json_body import decode_json
from demi.server.protocol.schemas import AccuracyAnswer, ShadowRequest
from demi.server.settings import ServeSettings
from demi.server.telemetry.overview import Overview


def accuracy_routes(repository: Repository, settings: ServeSettings, overview: Overview) -> APIRouter:
    """Return the routes that report a model's accuracy and set its share of sampled requests."""
    router = APIRouter(tags=["accuracy"])
    reading: dict[str, Any] = {"response_model": AccuracyAnswer, "responses": UNKNOWN | NOT_READY}
    changing: dict[str, Any] = {
        "response_model": AccuracyAnswer,
        "responses": UNKNOWN | NOT_READY | BAD | FORBIDDEN,
        "openapi_extra": json_body({"shadow": {"type": "number", "minimum": 0, "maximum": 1}}, "shadow"),
    }

    @router.get("/v2/models/{model}/accuracy", **reading)
    @router.get("/v2/models/{model}/versions/{version}/accuracy", **reading)
    async def accuracy(model: str, version: str | None = None) -> Response:
        """Compare recent requests with the budget; list the worst, guarded requests, and inputs outside their ranges."""
        return _json(await overview.accuracy(model, version))

    @router.post("/v2/models/{model}/accuracy", **changing)
    @router.post("/v2/models/{model}/versions/{version}/accuracy", **changing)
    async def set_shadow(request: Request, model: str, version: str | None = None) -> Response:
        """Set the share of requests that are sampled: `{"shadow": 0.05}`."""
        if not settings.allow_model_control:
            raise ForbiddenError(
                "this server does not let clients change the share of sampled requests",
                hint="start it with --allow-model-control",
            )
        body = await read_small_body(request)
        repository.find(model, version)
        share = decode_json(body, ShadowRequest, hint='send a share from 0 to 1, e.g. `{"shadow": 0.05}`').shadow
        return _json(await overview.set_shadow(model, version, share))

    return router


def _json(answer: AccuracyAnswer) -> Response:
    """Encode an answer with NaN and infinity, which JSON lacks, as null."""
    return Response(msgspec.json.encode(answer), media_type="application/json")
