"""The gRPC server: its services on one port, on the event loop that serves HTTP as well."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc

from demi.errors import InputError
from demi.server.grpc.calls import Authorize, Bounds, handlers
from demi.server.grpc.health_service import HealthService
from demi.server.grpc.service import InferenceService
from demi.server.memory_limit import InFlight
from demi.server.models.control import Control
from demi.server.models.repository import Repository
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.settings import ServeSettings
from demi.server.telemetry.tracing import Tracer

_IDLE_S = 75
"""As over HTTP: a connection without a call is closed, and clients open the next one by themselves."""
_STREAMS = 256
"""Calls of one connection that may be open at once; clients wait with more."""
_NO_LIMIT = 2**31 - 1


class GrpcServer:
    """Speaks gRPC where `reserved` is bound, from `start` to `stop`. Owns that socket, and keeps others off until then.

    With `credentials` it speaks TLS. `authorize` sees the metadata of every call but those that ask whether the
    server is well, which balancers do without a key.
    """

    def __init__(
        self,
        reserved: socket.socket,
        repository: Repository,
        settings: ServeSettings,
        control: Control | None,
        memory: SharedMemory,
        *,
        credentials: grpc.ServerCredentials | None = None,
        authorize: Authorize | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.address = address_of(reserved)
        self._reserved = reserved
        self.in_flight = InFlight(settings.max_in_flight_bytes)  # not HTTP's: neither starves the other
        bounds = Bounds(settings.max_parsed_bytes, self.in_flight)
        service = InferenceService(repository, settings, control, memory, tracer, bounds)
        self._handlers = (
            handlers("inference.GRPCInferenceService", service, authorize, bounds),
            handlers("grpc.health.v1.Health", HealthService(repository, authorize), bounds=bounds),
        )
        self._credentials = credentials
        self._options = (
            *limits(settings),
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # two servers on one port would share its clients by chance
        )
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Begin to listen; InputError where the address is gone."""
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
        """Take no more calls, and give those under way `grace_s` seconds."""
        if self._server:
            await self._server.stop(grace_s)


def limits(settings: ServeSettings) -> tuple[tuple[str, int], ...]:
    """What gRPC itself is to hold clients to: how many connections, how long a silent one stays, and a handshake takes."""
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
    """HOST:PORT of a bound socket, as gRPC writes it."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def credentials_of(certificate: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    """What makes gRPC speak TLS with a certificate and key that have been checked already; None for plain text."""
    if certificate is None or key is None:
        return None
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
