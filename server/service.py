"""A server without sockets: its models, their control, and the applications that answer requests about them.

`demi serve` puts sockets in front of it (`demi.server.run`), and Ray Serve opens one in each replica (`demi.server.ray`).
Nothing else opens a repository to serve it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demi.runtime.onnxruntime.session import log_errors_only
from demi.server.accuracy.guarded_inputs import require_folder
from demi.server.http.app import DemiApp, create_app
from demi.server.http.origins import Origins
from demi.server.keys import Keys, read_keys
from demi.server.memory_limit import MemoryLimit
from demi.server.models.control import Control, ModelControl
from demi.server.models.repository import Load, Repository, open_repository
from demi.server.models.trial_loads import load_after_trial
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.settings import ServeSettings
from demi.server.telemetry.logs import start_logging
from demi.server.telemetry.overview import Overview, OwnOverview
from demi.server.telemetry.tracing import Tracer, open_tracer

if TYPE_CHECKING:
    from demi.server.grpc.calls import MethodHandlers

Among = Callable[[OwnOverview, Control], tuple[Overview, ModelControl]]
"""Returns what clients reach: the overview and the control of this server, or of it and others behind the same address."""

LAST_RUN_S = 0.2
"""Time for model runs that are still going when a service is closed."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Foundation of a server, there before its models: the log is open, and keys and tracer are read from the settings."""

    settings: ServeSettings
    keys: Keys | None
    tracer: Tracer | None


def prepare(settings: ServeSettings) -> Prepared:
    """Start the log and open everything that the settings name besides models: keys, tracer, the folder for inputs.

    It is fast and finds mistakes in the settings before models take minutes to load. Raises InputError or PackageError.
    """
    start_logging(settings.log_level, settings.log_format, access=settings.access_log)
    log_errors_only()
    keys = read_keys(settings.api_key_file) if settings.api_key_file else None
    if settings.keep_guarded:
        require_folder(Path(settings.keep_guarded))
    return Prepared(settings, keys, open_tracer(settings))


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a server that need no socket. Owns models, shared memory and tracer until `close`.

    All of it is used on one event loop's thread.
    """

    prepared: Prepared
    repository: Repository
    control: Control
    memory: SharedMemory
    overview: Overview
    offered_control: ModelControl | None
    """The control that clients may use; None if the settings forbid it."""
    app: DemiApp
    """The HTTP application, as ASGI."""

    @property
    def settings(self) -> ServeSettings:
        """The settings it was opened with."""
        return self.prepared.settings

    def grpc_methods(self) -> dict[str, MethodHandlers]:
        """Return the handlers of all gRPC methods, by service and method. Imports grpcio."""
        from demi.server.grpc.server import service_methods

        settings, keys = self.settings, self.prepared.keys
        return service_methods(
            self.repository,
            settings,
            self.offered_control,
            self.memory,
            MemoryLimit(settings.max_in_flight_bytes),
            keys.authorize if keys else None,
            self.prepared.tracer,
            self.overview,
        )

    def close(self) -> bool:
        """Close all models and send the last traces. Return whether every model run has ended."""
        ended = self.repository.close(LAST_RUN_S)
        self.memory.unregister()
        if self.prepared.tracer:
            self.prepared.tracer.close()
        return ended


def alone(overview: OwnOverview, control: Control) -> tuple[Overview, ModelControl]:
    """Answer for this server only."""
    return overview, control


def open_service(
    prepared: Prepared, path: Path, load: Load = load_after_trial, *, is_local: bool = False, among: Among = alone
) -> Service:
    """Load the models at or below `path`, and return the service that answers for them.

    `is_local` is True if only this machine can connect; then requests from browsers are checked more strictly. `among`
    makes the service answer for several servers. Raises a DemiError if nothing can be served.
    """
    settings, keys = prepared.settings, prepared.keys
    repository = open_repository(path, settings, load)
    control = Control(repository, path, settings, load_after_trial)
    memory = SharedMemory(allowed=settings.allow_shared_memory, max_bytes=settings.max_body_bytes)
    origins = Origins(settings.hosts, guarded=is_local and keys is None)
    overview, offered = among(OwnOverview(repository), control)
    app = create_app(repository, settings, offered, memory, keys, prepared.tracer, origins, overview)
    offered_control = offered if settings.allow_model_control else None
    return Service(prepared, repository, control, memory, overview, offered_control, app)


def tune_garbage_collector() -> None:
    """Exclude the loaded models from garbage collection: walking them took most of the time of the slowest 1% of requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
