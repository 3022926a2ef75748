"""Run a server from its settings to its exit code: load, listen, serve, drain."""

from __future__ import annotations

import gc
import logging
import os
import socket
from functools import partial
from pathlib import Path
from typing import NoReturn

from demi.runtime.onnxruntime.session import log_errors_only
from demi.server.accuracy.guarded_inputs import require_folder
from demi.server.grpc.startup import open_grpc, reserve_port
from demi.server.http.app import create_app
from demi.server.http.draining_server import DrainingServer
from demi.server.http.origins import Origins, is_loopback
from demi.server.keys import read_keys, require_key, warn_without_key
from demi.server.listening import allow_files, bind, listen
from demi.server.models.control import Control
from demi.server.models.model import State
from demi.server.models.repository import Repository, open_repository
from demi.server.models.trial_loads import TrialLoads, load_after_trial
from demi.server.protocol.shared_memory import SharedMemory
from demi.server.setting_values import show_devices
from demi.server.settings import ServeSettings
from demi.server.telemetry.logs import start_logging
from demi.server.telemetry.tracing import open_tracer
from demi.server.tls import open_tls

log = logging.getLogger("demi.server")

_LAST_RUN_S = 0.2
"""Time for model runs that are still going when the server has stopped."""


def serve(path: Path, settings: ServeSettings, trials: TrialLoads) -> int:
    """Serve the bundles at `path` until SIGTERM or SIGINT, then drain; return the exit code of the process.

    Each bundle is loaded in a separate process first (`trials`). Raises a DemiError if nothing can be served, or if the
    address cannot be used.
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
    warn_without_key(settings, keys, is_local=is_local)
    reserved = reserve_port(settings) if settings.grpc else None
    repository = open_repository(path, settings, trials.load)
    trials.close()
    control = Control(repository, path, settings, load_after_trial)
    memory = SharedMemory(allowed=settings.allow_shared_memory, max_bytes=settings.max_body_bytes)
    origins = Origins(settings.hosts, guarded=is_local and keys is None)
    app = create_app(repository, settings, control, memory, keys, tracer, origins)
    grpc = open_grpc(reserved, repository, settings, control, memory, keys, tracer) if reserved else None
    announce = partial(_announce, grpc=grpc.address if grpc else "off", repository=repository, settings=settings)
    _tune_garbage_collector()
    listen(listener)
    DrainingServer(app, repository, settings, control, announce, grpc, tls).run(sockets=[listener])
    ended = repository.close(_LAST_RUN_S)
    memory.unregister()
    if tracer:
        tracer.close()
    log.info("stopped")
    return 0 if ended else _exit_at_once()


def _exit_at_once() -> NoReturn:
    """End the process under a model run that cannot be stopped; Python's normal exit would abort when the run returns."""
    logging.shutdown()
    os._exit(0)


def _tune_garbage_collector() -> None:
    """Exclude the loaded models from garbage collection: walking them took most of the time of the slowest 1% of requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


def _announce(listener: socket.socket, *, grpc: str, repository: Repository, settings: ServeSettings) -> None:
    """Log the addresses and the models, and warn about `--shadow` shares for models that do not exist."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    ready, failed = (
        ",".join(f"{model.name}/{model.version}" for model in repository if model.state is state)
        for state in (State.READY, State.FAILED)
    )
    devices = show_devices(settings.devices)
    log.info("serving url=%s grpc=%s device=%s models=%s failed=%s", url, grpc, devices, ready, failed or "none")
    for unknown in sorted(settings.shadow.models.keys() - {model.name for model in repository}):
        log.warning("--shadow names an unknown model: name=%s", unknown)
