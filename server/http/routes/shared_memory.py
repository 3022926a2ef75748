"""Shared memory over HTTP: the system's, where the settings allow it, and CUDA's, which there is none of."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.server.errors import RequestError
from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.control import FORBIDDEN
from demi.server.http.routes.models import BAD, UNKNOWN
from demi.server.protocol.schemas import ErrorBody, RegionRequest, RegionStatus
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY, SharedMemory, no_cuda

_SIZE = {"type": "integer", "minimum": 0}
_REGION = {"key": {"type": "string"}, "byte_size": _SIZE, "offset": _SIZE}


def shared_memory_routes(memory: SharedMemory) -> APIRouter:
    """Status, registration and its end; load generators ask for the end of all regions before they begin."""
    router = APIRouter(tags=["shared memory"])
    system, cuda = "/v2/systemsharedmemory", "/v2/cudasharedmemory"

    @router.get(system + "/status", responses=UNKNOWN)
    @router.get(system + "/region/{region}/status", responses=UNKNOWN)
    async def status(region: str = "") -> list[RegionStatus]:
        """The registered regions, or the one of that name."""
        return memory.status(region)

    @router.post(
        system + "/region/{region}/register",
        responses=FORBIDDEN | BAD,
        response_class=Response,
        openapi_extra=json_body(_REGION, "key", "byte_size"),
    )
    async def register(region: str, request: Request) -> Response:
        """Call a part of a POSIX shared memory object by a name."""
        body = await read_small_body(request)
        wanted = read_region_request(body)
        memory.register(region, wanted.key, wanted.offset, wanted.byte_size)
        return Response()

    @router.post(system + "/unregister", response_class=Response)
    @router.post(system + "/region/{region}/unregister", response_class=Response)
    async def unregister(region: str = "") -> Response:
        """Let go of one region, or of all."""
        memory.unregister(region)
        return Response()

    @router.get(cuda + "/status", responses=UNKNOWN)
    @router.get(cuda + "/region/{region}/status", responses=UNKNOWN)
    async def cuda_status(region: str = "") -> list[RegionStatus]:
        """No region: the memory of a GPU is not shared with clients."""
        return NO_SHARED_MEMORY.status(region)

    @router.post(
        cuda + "/region/{region}/register",
        responses={501: {"model": ErrorBody, "description": "Not offered by this server"}},
        response_class=Response,
    )
    async def cuda_register(region: str) -> Response:
        """Refused."""
        raise no_cuda()

    @router.post(cuda + "/unregister", response_class=Response)
    @router.post(cuda + "/region/{region}/unregister", response_class=Response)
    async def cuda_unregister(region: str = "") -> Response:
        """Nothing to let go of."""
        return Response()

    return router


def read_region_request(body: bytes) -> RegionRequest:
    """The body of a request to register a region; RequestError when it is anything else."""
    try:
        return msgspec.json.decode(body, type=RegionRequest)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RequestError(f"the request is not as the protocol has it: {error}") from error
