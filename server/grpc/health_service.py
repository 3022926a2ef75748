"""The service `grpc.health.v1.Health`: readiness of the server or of one model."""

from __future__ import annotations

import asyncio

from demi.server.errors import NotFoundError
from demi.server.grpc.calls import Authorize, Call, text_metadata, write
from demi.server.grpc.health import HealthCheckRequest, HealthCheckResponse
from demi.server.models.model import State
from demi.server.models.repository import Repository

POLL_INTERVAL_S = 0.2
"""Largest delay of `Watch`. Polling is cheap, and states change in too many places for notifications."""


class HealthService:
    """The methods of the service, in snake case.

    The server's own status is public; `authorize` protects the status of a model.
    """

    def __init__(self, repository: Repository, authorize: Authorize | None = None) -> None:
        self._repository = repository
        self._authorize = authorize

    async def check(self, asked: HealthCheckRequest, call: Call) -> HealthCheckResponse:
        """Return the current status of the server (no name) or of a model; NotFoundError for an unknown model."""
        self._admit(asked.service, call)
        status = self._status(asked.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFoundError(f"unknown model `{asked.service}`", hint="leave the name empty for the server itself")
        return HealthCheckResponse(status=status)

    async def watch(self, asked: HealthCheckRequest, call: Call) -> None:
        """Write the current status, and again at each change, until the server shuts down."""
        self._admit(asked.service, call)
        before: HealthCheckResponse.ServingStatus | None = None
        while True:
            last = self._repository.draining  # read before the status, so that the final status is still sent
            if (status := self._status(asked.service)) != before:
                await write(call, HealthCheckResponse(status=status).SerializeToString())
                before = status
            if last:
                return
            await asyncio.sleep(POLL_INTERVAL_S)

    def _admit(self, name: str, call: Call) -> None:
        if name and self._authorize:
            self._authorize(text_metadata(call))

    def _status(self, name: str) -> HealthCheckResponse.ServingStatus:
        try:
            ready = self._repository.find(name).state is State.READY if name else self._repository.ready
        except NotFoundError:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
