"""A server from its settings to its end: load, listen, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import ssl
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn

from demi.errors import InputError, PackageError
from demi.runtime.onnxruntime.session import log_errors_only
from demi.server.accuracy.guard import require_folder
from demi.server.http.app import DemiApp, create_app
from demi.server.http.connection_limit import Crowd
from demi.server.http.fast_path import connection_factory
from demi.server.http.origins import Origins, is_loopback
from demi.server.http.tls_handshake import Door
from demi.server.keys import Keys, read_keys
from demi.server.models.control import Control
from demi.server.models.model import State
from demi.server.models.repository import Repository, open_repository
from demi.server.models.trial import Trials, load_tried
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.setting_values import show_devices
from demi.server.settings import ServeSettings
from demi.server.telemetry.logs import start_logging
from demi.server.telemetry.tracing import Tracer, open_tracer
from demi.server.tls import open_tls

if TYPE_CHECKING:
    from demi.server.grpc.server import GrpcServer

log = logging.getLogger("demi.server")

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
"""Longer than the pools of common clients, so that it is they who close a connection that nobody uses."""
_LAST_WRITES_S = 2
"""What answers that are being written get once every request has been answered or given up."""

_LAST_RUN_S = 0.2
_OTHER_FILES = 512
"""What a server may have open besides connections."""


def serve(path: Path, settings: ServeSettings, trials: Trials) -> int:
    """Serve the bundles at `path`, once they are tried, until SIGTERM or SIGINT, then drain; the exit code of the process.

    Raises the DemiError that says why there is nothing to serve or nowhere to listen.
    """
    start_logging(settings.log_level, settings.log_format, access=settings.access_log)
    log_errors_only()
    keys = read_keys(settings.api_key_file) if settings.api_key_file else None
    if settings.keep_guarded:
        require_folder(Path(settings.keep_guarded))
    tls = open_tls(settings.tls_cert, settings.tls_key)
    tracer = open_tracer(settings)
    allow_files(settings.max_connections)
    listener = bind(settings.host, settings.port)
    is_local = is_loopback(listener.getsockname()[0])
    require_key(settings, keys, is_local=is_local)
    reserved = reserve_grpc(settings) if settings.grpc else None
    repository = open_repository(path, settings, trials.load)
    trials.close()
    control = Control(repository, path, settings, load_tried)
    memory = SharedMemory(allowed=settings.allow_shared_memory, max_bytes=settings.max_body_bytes)
    origins = Origins(settings.hosts, guarded=is_local and keys is None)
    app = create_app(repository, settings, control, memory, keys, tracer, origins)
    grpc = open_grpc(reserved, repository, settings, control, memory, keys, tracer) if reserved else None
    _settle_memory()
    _listen(listener, settings)
    DrainingServer(app, repository, settings, control, grpc, tls).run(sockets=[listener])
    ended = repository.close(_LAST_RUN_S)
    memory.unregister()
    if tracer:
        tracer.close()
    log.info("stopped")
    return 0 if ended else _leave_at_once()


def _leave_at_once() -> NoReturn:
    """End the process under a run that nobody can stop: Python's own way out would abort when it returns."""
    logging.shutdown()
    os._exit(0)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that finishes what it has begun.

    On the first signal the models admit no more requests (the answer is 503, so that a balancer moves on) while the
    port stays open; when the last request is answered, or its time is up, the server stops. A second signal stops it
    at once.
    """

    def __init__(
        self,
        app: DemiApp,
        repository: Repository,
        settings: ServeSettings,
        control: Control,
        grpc: GrpcServer | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._crowd = Crowd(settings.max_connections)
        self._tls = tls
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_factory(settings, app.respond, self._crowd),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LAST_WRITES_S,
            )
        )
        self._repository = repository
        self._settings = settings
        self._grpc = grpc
        self._drain_s = settings.drain_s
        self._stop_at: float | None = None
        self._control = control
        self._watch_s = settings.watch_s
        self._look_at = time.monotonic() + settings.watch_s
        self._watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on both ports, and say so once clients can connect."""
        await super().startup([] if self._tls else sockets)
        if self._tls and sockets:
            self.servers = [self._door(listener, self._tls) for listener in sockets]  # type: ignore[misc]
        if self._grpc:
            await self._grpc.start()
        if sockets:
            _announce(sockets[0], self._grpc, self._repository, self._settings)

    def _door(self, listener: socket.socket, tls: ssl.SSLContext) -> Door:
        """What lets clients in that speak TLS: the event loop's own server would not count them before they have."""
        kind: Any = self.config.http_protocol_class
        make = partial(kind, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return Door(listener, make, tls, self._crowd, self._settings.client_timeout_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the last answers be written, over HTTP and gRPC at once."""
        ends = [super().shutdown(sockets)]
        if self._grpc:
            ends.append(self._grpc.stop(0 if self.force_exit else _LAST_WRITES_S))
        await asyncio.gather(*ends)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or stop at once when draining already; the signal is not raised again at the end."""
        if self._stop_at is not None:
            self.should_exit = self.force_exit = True
            return
        self._stop_at = time.monotonic() + self._drain_s
        self._repository.drain()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: stop once drained, and look at the bundles when it is time."""
        if self._stop_at is not None and not self.should_exit:
            left = self._repository.in_flight
            if left and time.monotonic() >= self._stop_at:
                log.warning("stopping with %d requests unanswered after %g s", left, self._drain_s)
            self.should_exit = not left or time.monotonic() >= self._stop_at
        elif self._watch_s and time.monotonic() >= self._look_at and (self._watch is None or self._watch.done()):
            self._look_at = time.monotonic() + self._watch_s
            self._watch = asyncio.create_task(self._control.sync())
        return await super().on_tick(counter)


def allow_files(connections: int) -> None:
    """Raise the process's own limit of open files, as far as it may, to what so many connections of both kinds need.

    A shell's 1024 would be reached first, and then nobody is let in, not even a probe.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OTHER_FILES if connections else hard
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft not in (resource.RLIM_INFINITY, -1) and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def require_key(settings: ServeSettings, keys: Keys | None, *, is_local: bool) -> None:
    """Raise InputError where whoever reaches the address could change the server, or this machine's memory."""
    wanted = {
        "--allow-model-control": settings.allow_model_control,
        "--allow-shared-memory": settings.allow_shared_memory,
    }
    if keys or is_local or settings.allow_without_key or not any(wanted.values()):
        return
    flags = " and ".join(flag for flag, is_on in wanted.items() if is_on)
    raise InputError(
        f"{flags} on {settings.host} would let everyone who reaches this server use it, since it asks for no key",
        hint="give keys with --api-key-file, or say with --allow-without-key that everyone may",
    )


def reserve_grpc(settings: ServeSettings) -> socket.socket:
    """A socket bound to the address for gRPC; PackageError where grpcio is missing, InputError where it is in use or HTTP's."""
    # Its native code writes lines of its own, about any client that speaks something else: what matters is raised as well.
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
            f"port {settings.port} cannot serve HTTP and gRPC", hint="choose another port for gRPC with --grpc-port"
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
    """The gRPC server on a reserved address; imported here, since it costs memory that not everyone has to spend.

    What protects HTTP protects it as well: the same certificate, and the same keys.
    """
    from demi.server.grpc.server import GrpcServer, credentials_of

    return GrpcServer(
        reserved,
        repository,
        settings,
        control if settings.allow_model_control else None,
        memory,
        credentials=credentials_of(settings.tls_cert, settings.tls_key),
        authorize=keys.authorize if keys else None,
        tracer=tracer,
    )


_HINT = "choose another address with --host and --port; --port 0 takes a free one"


def bind(host: str, port: int, hint: str = _HINT) -> socket.socket:
    """A socket bound to the address, not listening yet; InputError, with the hint, when it cannot be had.

    Bound before the models load, so that a port in use costs no minute of loading.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _no_address(host, port, error, hint) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _no_address(host, port, error, hint) from error
    return listener


def _listen(listener: socket.socket, settings: ServeSettings) -> None:
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _no_address(settings.host, settings.port, error, _HINT) from error
    listener.setblocking(False)


def _no_address(host: str, port: int, error: OSError, hint: str) -> InputError:
    return InputError(f"cannot listen on {host}:{port}: {error.strerror or error}", hint=hint)


def _settle_memory() -> None:
    """Keep the collector from walking the loaded models again and again: it took most of the slowest 1% of requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


def _announce(
    listener: socket.socket, grpc: GrpcServer | None, repository: Repository, settings: ServeSettings
) -> None:
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    ready, failed = (
        ",".join(f"{model.name}/{model.version}" for model in repository if model.state is state)
        for state in (State.READY, State.FAILED)
    )
    log.info(
        "serving url=%s grpc=%s device=%s models=%s failed=%s",
        url,
        grpc.address if grpc else "off",
        show_devices(settings.devices),
        ready,
        failed or "none",
    )
    names = {model.name for model in repository}
    for unknown in sorted(settings.shadow.models.keys() - names):
        log.warning("--shadow names no model that is here: name=%s", unknown)
