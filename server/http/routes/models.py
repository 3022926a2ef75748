"""Metadata of the server and its models, readiness, configuration, and the repository index."""

from __future__ import annotations

from fastapi import APIRouter, Request

from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.responses import BAD, NOT_READY, UNKNOWN
from demi.server.models.describe import configure_model, describe_model, describe_server
from demi.server.models.repository import Repository
from demi.server.protocol.json_body import decode_json
from demi.server.protocol.schemas import (
    IndexEntry,
    IndexRequest,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
)
from demi.server.settings import ServeSettings
from demi.server.telemetry.overview import Overview


def model_routes(repository: Repository, settings: ServeSettings, overview: Overview) -> APIRouter:
    """Return the routes that describe the server and its models."""
    router = APIRouter(tags=["models"])

    @router.get("/v2")
    async def server_metadata() -> ServerMetadata:
        """Return the server's name, version and supported protocol extensions."""
        return describe_server(settings)

    @router.get("/v2/models/{model}", responses=UNKNOWN | NOT_READY)
    @router.get("/v2/models/{model}/versions/{version}", responses=UNKNOWN | NOT_READY)
    async def model_metadata(model: str, version: str | None = None) -> ModelMetadata:
        """Return a model's inputs and outputs, and the precision and device it runs in."""
        found = repository.find(model, version)
        return describe_model(found, repository.versions(model), settings)

    @router.get("/v2/models/{model}/ready", responses=UNKNOWN | NOT_READY)
    @router.get("/v2/models/{model}/versions/{version}/ready", responses=UNKNOWN | NOT_READY)
    async def model_ready(model: str, version: str | None = None) -> ModelReady:
        """Answer 200 if a model is ready, else 503 with the reason."""
        repository.find(model, version).check_ready()
        return ModelReady(model, ready=True)

    @router.get("/v2/models/{model}/config", responses=UNKNOWN | NOT_READY)
    @router.get("/v2/models/{model}/versions/{version}/config", responses=UNKNOWN | NOT_READY)
    async def model_config(model: str, version: str | None = None) -> ModelConfig:
        """Return the model configuration, which load generators read."""
        return configure_model(repository.find(model, version))

    @router.post("/v2/repository/index", responses=BAD, openapi_extra=json_body({"ready": {"type": "boolean"}}))
    async def index(request: Request) -> list[IndexEntry]:
        """List all model versions and their states; with the body `{"ready": true}` only those that are ready."""
        asked = decode_json(await read_small_body(request), IndexRequest, empty=IndexRequest())
        return await overview.index(ready_only=asked.ready)

    return router
