"""Register shared memory over HTTP: system shared memory if the settings allow it; CUDA shared memory is refused."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from demi.server.http.asgi import read_small_body
from demi.server.http.openapi import json_body
from demi.server.http.routes.responses import BAD, FORBIDDEN, UNKNOWN, UNSUPPORTED
from demi.server.protocol.json_body import decode_json
from demi.server.protocol.schemas import RegionRequest, RegionStatus
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY, SharedMemory, cuda_unsupported

_SIZE = {"type": "integer", "minimum": 0}
_REGION = {"key": {"type": "string"}, "byte_size": _SIZE, "offset": _SIZE}


def shared_memory_routes(memory: SharedMemory) -> APIRouter:
    """Return the routes that register, list and unregister regions. Load generators unregister all before they start."""
    router = APIRouter(tags=["shared memory"])
    system, cuda = "/v2/systemsharedmemory", "/v2/cudasharedmemory"

    @router.get(system + "/status", responses=UNKNOWN)
    @router.get(system + "/region/{region}/status", responses=UNKNOWN)
    async def status(region: str = "") -> list[RegionStatus]:
        """List the registered regions, or return the one of that name."""
        return memory.status(region)

    @router.post(
        system + "/region/{region}/register",
        responses=FORBIDDEN | BAD,
        response_class=Response,
        openapi_extra=json_body(_REGION, "key", "byte_size"),
    )
    async def register(region: str, request: Request) -> Response:
        """Register part of a POSIX shared memory object as a region."""
        wanted = decode_json(await read_small_body(request), RegionRequest)
        memory.register(region, wanted.key, wanted.offset, wanted.byte_size)
        return Response()

    @router.post(system + "/unregister", response_class=Response)
    @router.post(system + "/region/{region}/unregister", response_class=Response)
    async def unregister(region: str = "") -> Response:
        """Unregister one region, or all."""
        memory.unregister(region)
        return Response()

    @router.get(cuda + "/status", responses=UNKNOWN)
    @router.get(cuda + "/region/{region}/status", responses=UNKNOWN)
    async def cuda_status(region: str = "") -> list[RegionStatus]:
        """List no regions: CUDA shared memory is not supported."""
        return NO_SHARED_MEMORY.status(region)

    @router.post(
        cuda + "/region/{region}/register",
        responses=UNSUPPORTED,
        response_class=Response,
    )
    async def cuda_register(region: str) -> Response:
        """Refuse with 501."""
        raise cuda_unsupported()

    @router.post(cuda + "/unregister", response_class=Response)
    @router.post(cuda + "/region/{region}/unregister", response_class=Response)
    async def cuda_unregister(region: str = "") -> Response:
        """Do nothing: there are no CUDA regions."""
        return Response()

    return router
