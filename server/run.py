"""Run a server from its settings to its exit code: a service (`demi.server.service`), and sockets in front of it."""

from __future__ import annotations

import logging
import os
import socket
from functools import partial
from pathlib import Path
from typing import NoReturn

from demi.server.grpc.startup import open_grpc, reserve_port
from demi.server.http.draining_server import DrainingServer
from demi.server.http.origins import is_loopback
from demi.server.keys import require_key, warn_without_key
from demi.server.listening import allow_files, bind, listen
from demi.server.models.model import State
from demi.server.models.repository import Repository
from demi.server.models.trial_loads import TrialLoads
from demi.server.service import open_service, prepare, tune_garbage_collector
from demi.server.setting_values import show_devices
from demi.server.settings import ServeSettings
from demi.server.tls import open_tls

log = logging.getLogger("demi.server")


def serve(path: Path, settings: ServeSettings, trials: TrialLoads) -> int:
    """Serve the bundles at `path` until SIGTERM or SIGINT, then drain; return the exit code of the process.

    Each bundle is loaded in a separate process first (`trials`). Raises a DemiError if nothing can be served, or if the
    address cannot be used.
    """
    prepared = prepare(settings)
    keys = prepared.keys
    tls = open_tls(settings.tls_cert, settings.tls_key)
    allow_files(settings.max_connections)
    listener = bind(settings.host, settings.port)
    is_local = is_loopback(listener.getsockname()[0])
    require_key(settings, keys, is_local=is_local)
    warn_without_key(settings, keys, is_local=is_local)
    reserved = reserve_port(settings) if settings.grpc else None
    service = open_service(prepared, path, trials.load, is_local=is_local)
    trials.close()
    repository, control = service.repository, service.control
    grpc = (
        open_grpc(reserved, repository, settings, control, service.memory, keys, prepared.tracer) if reserved else None
    )
    announce = partial(_announce, grpc=grpc.address if grpc else "off", repository=repository, settings=settings)
    tune_garbage_collector()
    listen(listener)
    DrainingServer(service.app, repository, settings, control, announce, grpc, tls).run(sockets=[listener])
    ended = service.close()
    log.info("stopped")
    return 0 if ended else _exit_at_once()


def _exit_at_once() -> NoReturn:
    """End the process under a model run that cannot be stopped; Python's normal exit would abort when the run returns."""
    logging.shutdown()
    os._exit(0)


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
