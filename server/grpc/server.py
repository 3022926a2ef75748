"""The gRPC server: inference and health services on one port, on the same event loop as HTTP."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc

from demi.errors import InputError
from demi.server.grpc.calls import Authorize, MessageLimits, MethodHandlers, generic_handler, method_handlers
from demi.server.grpc.health_service import HealthService
from demi.server.grpc.service import InferenceService
from demi.server.memory_limit import MemoryLimit
from demi.server.models.control import ModelControl
from demi.server.models.repository import Repository
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.settings import ServeSettings
from demi.server.telemetry.overview import Overview
from demi.server.telemetry.tracing import Tracer

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

_IDLE_S = 75
"""Seconds after which an idle connection is closed, as over HTTP; clients reconnect by themselves."""
_STREAMS = 256
"""Concurrent calls per connection; clients queue further ones."""
_NO_LIMIT = 2**31 - 1


class GrpcServer:
    """Serves gRPC on the port of `reserved`, from `start` to `stop`. Owns that socket, which keeps the port until `start`.

    With `credentials` it uses TLS. `authorize` checks the metadata of every call except health checks, for which load
    balancers have no key.
    """

    def __init__(
        self,
        reserved: socket.socket,
        repository: Repository,
        settings: ServeSettings,
        control: ModelControl | None,
        memory: SharedMemory,
        *,
        credentials: grpc.ServerCredentials | None = None,
        authorize: Authorize | None = None,
        tracer: Tracer | None = None,
        overview: Overview | None = None,
    ) -> None:
        self.address = address_of(reserved)
        self._reserved = reserved
        self.memory_limit = MemoryLimit(
            settings.max_in_flight_bytes
        )  # separate from HTTP's, so that neither starves the other
        services = service_methods(
            repository, settings, control, memory, self.memory_limit, authorize, tracer, overview
        )
        self._handlers = [generic_handler(name, methods) for name, methods in services.items()]
        self._credentials = credentials
        self._options = (
            *channel_options(settings),
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # otherwise two servers on one port would share its clients at random
        )
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Start to listen; InputError if the address is no longer free."""
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers(self._handlers)
        try:
            if self._credentials:
                server.add_secure_port(self.address, self._credentials)
            else:
                server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise InputError(
                f"cannot listen on {self.address} for gRPC", hint="choose another port with --grpc-port, or --no-grpc"
            ) from error
        self._reserved.close()
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, and give those in flight `grace_s` seconds."""
        if self._server:
            await self._server.stop(grace_s)


def service_methods(
    repository: Repository,
    settings: ServeSettings,
    control: ModelControl | None,
    memory: SharedMemory,
    memory_limit: MemoryLimit,
    authorize: Authorize | None = None,
    tracer: Tracer | None = None,
    overview: Overview | None = None,
) -> dict[str, MethodHandlers]:
    """Return the handlers of both services, inference and health, by the service's name."""
    limits = MessageLimits(settings.max_parsed_bytes, memory_limit, settings.max_body_bytes)
    service = InferenceService(repository, settings, control, memory, tracer, limits, overview)
    return {
        INFERENCE: method_handlers(INFERENCE, service, authorize, limits),
        HEALTH: method_handlers(HEALTH, HealthService(repository, authorize), limits=limits),
    }


def channel_options(settings: ServeSettings) -> tuple[tuple[str, int], ...]:
    """Return the channel options that limit connections, idle time, handshakes, streams and metadata."""
    handshake_ms = int(settings.client_timeout_s * 1000)
    return (
        ("grpc.max_allowed_incoming_connections", settings.max_connections or _NO_LIMIT),
        ("grpc.max_connection_idle_ms", _IDLE_S * 1000),
        ("grpc.server_handshake_timeout_ms", handshake_ms or _NO_LIMIT),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.max_metadata_size", settings.max_header_bytes),
    )


def address_of(listener: socket.socket) -> str:
    """Return HOST:PORT of a bound socket, in gRPC's notation."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def load_credentials(certificate: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    """Return TLS credentials from a certificate and key that were checked before; None for plain text."""
    if certificate is None or key is None:
        return None
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
