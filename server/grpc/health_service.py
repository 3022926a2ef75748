"""`grpc.health.v1.Health`: whether the server, or one model, can be asked."""

from __future__ import annotations

import asyncio

from demi.server.errors import NotFoundError
from demi.server.grpc.calls import Authorize, Call, text_metadata, write
from demi.server.grpc.health import HealthCheckRequest, HealthCheckResponse
from demi.server.models.model import State
from demi.server.models.repository import Repository

LOOK_EVERY_S = 0.2
"""How long a watcher may be behind: states change in many places, and a look costs nothing."""


class HealthService:
    """The methods of the service, by their names in snake case.

    Anyone may ask for the server; a model is named only to those that `authorize` lets in.
    """

    def __init__(self, repository: Repository, authorize: Authorize | None = None) -> None:
        self._repository = repository
        self._authorize = authorize

    async def check(self, asked: HealthCheckRequest, call: Call) -> HealthCheckResponse:
        """The state of the server (no name) or of a model now; NotFoundError for a model that is not there."""
        self._admit(asked.service, call)
        status = self._status(asked.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFoundError(f"unknown model `{asked.service}`", hint="leave the name out to ask for the server")
        return HealthCheckResponse(status=status)

    async def watch(self, asked: HealthCheckRequest, call: Call) -> None:
        """The state now and whenever it changes, until the server shuts down."""
        self._admit(asked.service, call)
        before: HealthCheckResponse.ServingStatus | None = None
        while True:
            last = self._repository.draining  # read before the status: the last one sent is that of the end
            if (status := self._status(asked.service)) != before:
                await write(call, HealthCheckResponse(status=status).SerializeToString())
                before = status
            if last:
                return
            await asyncio.sleep(LOOK_EVERY_S)

    def _admit(self, name: str, call: Call) -> None:
        if name and self._authorize:
            self._authorize(text_metadata(call))

    def _status(self, name: str) -> HealthCheckResponse.ServingStatus:
        try:
            ready = self._repository.find(name).state is State.READY if name else self._repository.ready
        except NotFoundError:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
