"""Reserve the gRPC port and open the gRPC server. Imports grpcio only when called, since it costs memory and is optional."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from demi.errors import InputError, PackageError
from demi.server.keys import Keys
from demi.server.listening import bind
from demi.server.models.control import Control
from demi.server.models.repository import Repository
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.settings import ServeSettings
from demi.server.telemetry.tracing import Tracer

if TYPE_CHECKING:
    from demi.server.grpc.server import GrpcServer


def reserve_port(settings: ServeSettings) -> socket.socket:
    """Return a socket bound to the address for gRPC.

    Raises PackageError if grpcio is not installed, and InputError if the port is in use or is the one for HTTP.
    """
    # gRPC's native code logs every client that speaks another protocol; real errors are raised as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import grpc.aio  # noqa: F401
    except ImportError as error:
        raise PackageError(
            "gRPC needs the Python package `grpcio`, which is not installed",
            hint="install it with: pip install 'demi-inference[server]', or serve with --no-grpc",
        ) from error
    if 0 < settings.port == settings.grpc_listens_on:
        raise InputError(
            f"port {settings.port} cannot serve both HTTP and gRPC",
            hint="choose another port for gRPC with --grpc-port",
        )
    return bind(settings.host, settings.grpc_listens_on, "choose another port for gRPC with --grpc-port, or --no-grpc")


def open_grpc(
    reserved: socket.socket,
    repository: Repository,
    settings: ServeSettings,
    control: Control,
    memory: SharedMemory,
    keys: Keys | None,
    tracer: Tracer | None = None,
) -> GrpcServer:
    """Return the gRPC server for a reserved port, with the same certificate and API keys as HTTP."""
    from demi.server.grpc.server import GrpcServer, load_credentials

    return GrpcServer(
        reserved,
        repository,
        settings,
        control if settings.allow_model_control else None,
        memory,
        credentials=load_credentials(settings.tls_cert, settings.tls_key),
        authorize=keys.authorize if keys else None,
        tracer=tracer,
    )
