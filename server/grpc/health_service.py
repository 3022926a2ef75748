"""`grpc.health.v1.Health`: whether the server, or one model, can be asked."""

from __future__ import annotations

import asyncio

from server.errors import NotFoundError
from server.grpc.calls import Call
from server.grpc.health import HealthCheckRequest, HealthCheckResponse
from server.model import State
from server.repository import Repository

LOOK_EVERY_S = 0.2
"""How long a watcher may be behind: states change in many places, and a look costs nothing."""


class HealthService:
    """The methods of the service, by their names in snake case."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def check(self, asked: HealthCheckRequest, call: Call) -> HealthCheckResponse:
        """The state of the server (no name) or of a model now; NotFoundError for a model that is not there."""
        status = self._status(asked.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFoundError(f"unknown model `{asked.service}`", hint="leave the name out to ask for the server")
        return HealthCheckResponse(status=status)

    async def watch(self, asked: HealthCheckRequest, call: Call) -> None:
        """The state now and whenever it changes, until the server shuts down."""
        before: HealthCheckResponse.ServingStatus | None = None
        while True:
            last = self._repository.draining  # read before the status: the last one sent is that of the end
            if (status := self._status(asked.service)) != before:
                await call.write(HealthCheckResponse(status=status).SerializeToString())
                before = status
            if last:
                return
            await asyncio.sleep(LOOK_EVERY_S)

    def _status(self, name: str) -> HealthCheckResponse.ServingStatus:
        try:
            ready = self._repository.find(name).state is State.READY if name else self._repository.ready
        except NotFoundError:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
