"""Versions of a model side by side, and the rules that choose among them: canary, promotion, rollback, aliases."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.bundles.traffic import parse_header
from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.responses import BAD, FORBIDDEN, NOT_READY, UNKNOWN
from demi.server.models.control import ModelControl, allowed
from demi.server.models.describe_versions import describe_versions
from demi.server.models.repository import Repository
from demi.server.protocol.json_body import decode_json
from demi.server.protocol.schemas import CanaryRequest, VersionRequest, VersionsAnswer

_VERSION = {"version": {"type": "string"}}


def version_routes(repository: Repository, control: ModelControl | None, *, changeable: bool) -> APIRouter:
    """Return the routes that compare a model's versions, and if `changeable`, change the rules among them."""
    router = APIRouter(tags=["versions"])
    rules = "/v2/repository/models/{model}"

    def changing(properties: dict[str, Any], *required: str) -> dict[str, Any]:
        return {
            "response_model": VersionsAnswer,
            "responses": FORBIDDEN | BAD | UNKNOWN | NOT_READY,
            "openapi_extra": json_body(properties, *required),
        }

    def granted() -> ModelControl:
        return allowed(control if changeable else None)

    def answer(model: str, saved: bool | None = None) -> Response:
        since = control.traffic.since(model) if control else None
        described = describe_versions(repository, model, since, saved)
        return Response(msgspec.json.encode(described), media_type="application/json")  # NaN becomes null

    @router.get("/v2/models/{model}/versions", response_model=VersionsAnswer, responses=UNKNOWN)
    async def versions(model: str) -> Response:
        """Compare the versions of a model: traffic, latency and accuracy of each."""
        return answer(model)

    @router.post(
        rules + "/canary",
        **changing({"percent": {"type": "number"}, "header": {"type": "string"}, **_VERSION}, "percent"),
    )
    async def canary(model: str, request: Request) -> Response:
        """Send a share of a model's requests to one version, by default the newest; it is loaded if it is not."""
        traffic = granted().traffic
        asked = decode_json(await read_small_body(request), CanaryRequest, hint='send a share, e.g. `{"percent": 10}`')
        header = parse_header(asked.header) if asked.header else None
        return answer(model, await traffic.canary(model, _text(asked.version), asked.percent, header))

    @router.post(rules + "/promote", **changing(_VERSION))
    async def promote(model: str, request: Request) -> Response:
        """Make a version stable, by default the canary: it then answers every request without a version."""
        traffic = granted().traffic
        asked = decode_json(await read_small_body(request), VersionRequest, empty=VersionRequest())
        return answer(model, await traffic.promote(model, _text(asked.version)))

    @router.post(rules + "/rollback", **changing(_VERSION))
    async def rollback(model: str, request: Request) -> Response:
        """End the canary; without one, make the stable version of before stable again."""
        traffic = granted().traffic
        asked = decode_json(await read_small_body(request), VersionRequest, empty=VersionRequest())
        return answer(model, await traffic.roll_back(model, _text(asked.version)))

    @router.post(rules + "/aliases", **changing({}))
    async def aliases(model: str, request: Request) -> Response:
        """Give versions further names, `{"blue": "1"}`, or remove one, `{"blue": null}`."""
        traffic = granted().traffic
        asked = decode_json(await read_small_body(request), dict[str, str | int | None])
        return answer(model, await traffic.alias(model, {name: _text(version) for name, version in asked.items()}))

    return router


def _text(version: str | int | None) -> str | None:
    return None if version is None or version == "" else str(version)
