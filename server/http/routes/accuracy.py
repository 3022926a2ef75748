"""What half precision costs while it serves, and how many requests it is measured on."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.server.errors import ForbiddenError, RequestError
from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.models import BAD, UNKNOWN
from demi.server.models.describe import describe_accuracy
from demi.server.models.repository import Repository
from demi.server.protocol.schemas import (
    AccuracyAnswer,
    ErrorBody,
    ShadowRequest,
)
from demi.server.settings import ServeSettings

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "description": "Not ready, and why"}}
_FORBIDDEN: dict[int | str, dict[str, Any]] = {403: {"model": ErrorBody, "description": "Not allowed by the settings"}}


def accuracy_routes(repository: Repository, settings: ServeSettings) -> APIRouter:
    """Accuracy of one model version, and the share of requests it is measured on."""
    router = APIRouter(tags=["accuracy"])
    answers: dict[str, Any] = {"response_model": AccuracyAnswer}
    refused = UNKNOWN | _NOT_READY | BAD | _FORBIDDEN
    body_of_share = json_body({"shadow": {"type": "number", "minimum": 0, "maximum": 1}}, "shadow")

    @router.get("/v2/models/{model}/accuracy", responses=UNKNOWN | _NOT_READY, **answers)
    @router.get("/v2/models/{model}/versions/{version}/accuracy", responses=UNKNOWN | _NOT_READY, **answers)
    async def accuracy(model: str, version: str | None = None) -> Response:
        """The window against the budget, worst requests, guarded requests, and inputs beyond calibration."""
        return _json(describe_accuracy(repository.find(model, version)))

    @router.post("/v2/models/{model}/accuracy", responses=refused, openapi_extra=body_of_share, **answers)
    @router.post(
        "/v2/models/{model}/versions/{version}/accuracy", responses=refused, openapi_extra=body_of_share, **answers
    )
    async def set_shadow(request: Request, model: str, version: str | None = None) -> Response:
        """Change the share of requests that are sampled: `{"shadow": 0.05}`."""
        if not settings.allow_model_control:
            raise ForbiddenError(
                "this server does not let clients change how many requests are sampled",
                hint="start it with --allow-model-control",
            )
        body = await read_small_body(request)
        found = repository.find(model, version)
        share = read_share(body)
        found.check_ready()
        if found.shadow is None:
            raise RequestError(
                f"model `{model}` has nothing to compare with: it holds no FP32 reference beside a half model"
            )
        found.shadow.share = share
        return _json(describe_accuracy(found))

    return router


def read_share(body: bytes) -> float:
    """The share in the body of a request to sample; RequestError where it is none."""
    try:
        return msgspec.json.decode(body, type=ShadowRequest).shadow
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RequestError(f'the request is not `{{"shadow": 0.05}}`, a share from 0 to 1: {error}') from error


def _json(answer: AccuracyAnswer) -> Response:
    """An answer in which NaN and infinities, which JSON does not have, are null."""
    return Response(msgspec.json.encode(answer), media_type="application/json")
