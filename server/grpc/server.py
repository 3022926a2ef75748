"""The gRPC server: its services on one port, on the event loop that serves HTTP as well."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc

from demi.errors import InputError
from server.control import Control
from server.grpc.calls import Authorize, handlers
from server.grpc.health_service import HealthService
from server.grpc.service import InferenceService
from server.repository import Repository
from server.settings import ServeSettings
from server.shared_memory import SharedMemory
from server.tracing import Tracer


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
        service = InferenceService(repository, settings, control, memory, tracer)
        self._handlers = (
            handlers("inference.GRPCInferenceService", service, authorize),
            handlers("grpc.health.v1.Health", HealthService(repository, authorize)),
        )
        self._credentials = credentials
        self._options = (
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


def address_of(listener: socket.socket) -> str:
    """HOST:PORT of a bound socket, as gRPC writes it."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def credentials_of(certificate: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    """What makes gRPC speak TLS with a certificate and key that have been checked already; None for plain text."""
    if certificate is None or key is None:
        return None
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
