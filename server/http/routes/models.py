"""What the server is, and what its models take and give."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request

from demi.server.errors import RequestError
from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.models.describe import configure_model, describe_model, describe_server, index_entry
from demi.server.models.model import State
from demi.server.models.repository import Repository
from demi.server.protocol.schemas import (
    ErrorBody,
    IndexEntry,
    IndexRequest,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
)
from demi.server.settings import ServeSettings

UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody, "description": "No such model or version"}}
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "description": "Not ready, and why"}}
BAD: dict[int | str, dict[str, Any]] = {400: {"model": ErrorBody, "description": "Not as the protocol has it"}}


def model_routes(repository: Repository, settings: ServeSettings) -> APIRouter:
    """Server and model metadata, readiness, configuration, and the repository index."""
    router = APIRouter(tags=["models"])

    @router.get("/v2")
    async def server_metadata() -> ServerMetadata:
        """The server's name, version and the extensions of the protocol it speaks."""
        return describe_server(settings)

    @router.get("/v2/models/{model}", responses=UNKNOWN | _NOT_READY)
    @router.get("/v2/models/{model}/versions/{version}", responses=UNKNOWN | _NOT_READY)
    async def model_metadata(model: str, version: str | None = None) -> ModelMetadata:
        """The inputs and outputs of a model, and the precision and device it runs in."""
        found = repository.find(model, version)
        return describe_model(found, repository.versions(model), settings)

    @router.get("/v2/models/{model}/ready", responses=UNKNOWN | _NOT_READY)
    @router.get("/v2/models/{model}/versions/{version}/ready", responses=UNKNOWN | _NOT_READY)
    async def model_ready(model: str, version: str | None = None) -> ModelReady:
        """Whether a model can be asked; the error says why not."""
        repository.find(model, version).check_ready()
        return ModelReady(model, ready=True)

    @router.get("/v2/models/{model}/config", responses=UNKNOWN | _NOT_READY)
    @router.get("/v2/models/{model}/versions/{version}/config", responses=UNKNOWN | _NOT_READY)
    async def model_config(model: str, version: str | None = None) -> ModelConfig:
        """The configuration that load generators read."""
        return configure_model(repository.find(model, version))

    @router.post("/v2/repository/index", responses=BAD, openapi_extra=json_body({"ready": {"type": "boolean"}}))
    async def repository_index(request: Request) -> list[IndexEntry]:
        """Every model version with its state; with the body `{"ready": true}` only those that are ready."""
        body = await read_small_body(request)
        only_ready = read_index_request(body).ready
        return [index_entry(model) for model in repository if model.state is State.READY or not only_ready]

    return router


def read_index_request(body: bytes) -> IndexRequest:
    """The body of an index request, which may be empty; RequestError when it is anything else."""
    if not body.strip():
        return IndexRequest()
    try:
        return msgspec.json.decode(body, type=IndexRequest)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RequestError(f"the index request is not as the protocol has it: {error}") from error
