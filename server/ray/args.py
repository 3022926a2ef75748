"""Arguments of the application: `serve run demi.ray:app models=models/ replicas=2 max_batch=8`."""

# No `from __future__ import annotations` here or in demi/ray.py: Ray reads a builder's annotation without resolving it, and
# hands over a plain dictionary where it finds a string.

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from demi.errors import InputError
from demi.remote.address import Address, models_argument
from demi.server.settings import ReplicaSettings, ServeSettings, named_settings, table

LISTENS = "Ray listens for clients: set `http_options` and `grpc_options` in its configuration"

WITHOUT_EFFECT = {
    "host": LISTENS,
    "port": LISTENS,
    "grpc": LISTENS,
    "grpc_port": LISTENS,
    "tls_cert": "Ray's HAProxy does not speak TLS: let the load balancer in front of it do that",
    "tls_key": "Ray's HAProxy does not speak TLS: let the load balancer in front of it do that",
    "max_header_bytes": "HAProxy limits headers to its buffer: set RAY_SERVE_HAPROXY_TUNE_BUFSIZE",
    "max_connections": "HAProxy limits connections: set RAY_SERVE_HAPROXY_MAXCONN",
    "client_timeout_s": "HAProxy limits slow clients: set RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S",
    "console": "the console shows one server, and each of its requests may reach another: chart /metrics instead",
    "allow_shared_memory": "a request may reach any machine, and shared memory belongs to one",
}
"""Settings of `demi serve` that would do nothing in a replica, each with the reason."""


class Args(BaseModel):
    """Arguments of the application: where the models are, how many replicas there are, and any setting of `demi serve`."""

    model_config = ConfigDict(extra="allow")

    models: str
    """Folder of bundles, or one bundle, at the same path on every node; or an address, from which each node downloads."""
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    """With this, Ray keeps between `replicas` and `max_replicas` running, by requests in flight."""
    in_flight: float | None = Field(None, gt=0)
    """Requests in flight per replica at which Ray adds replicas; by default 1.5 batches for each instance."""
    surge: int = Field(25, ge=1, le=100)
    """Replicas that an update starts at a time before it stops old ones, in percent, rounded up."""
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float | None = Field(None, ge=0)
    """GPUs of a replica, possibly a fraction; by default 1 if the device is cuda, else 0."""

    @model_validator(mode="after")
    def _check(self) -> "Args":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is smaller than replicas")
        return self

    @property
    def place(self) -> Path | Address:
        """The folder or address of the models. Raises InputError for an address that Demi cannot read."""
        return models_argument(self.models)

    @property
    def settings(self) -> ServeSettings:
        """The settings of each replica. Raises InputError for unknown ones, and for those without effect under Ray."""
        given: dict[str, Any] = dict(self.model_extra or {})
        settings = named_settings(given)
        for name, row in table().items():
            short = row.flag.removeprefix("--").replace("-", "_")
            if name in WITHOUT_EFFECT and (name in given or short in given):
                raise InputError(f"`{short}` has no effect under Ray", hint=WITHOUT_EFFECT[name])
        # HAProxy listens there; messages about access name it
        return ReplicaSettings.of(settings, host="0.0.0.0", console=False)

    @property
    def gpus(self) -> float:
        """GPUs of a replica."""
        if self.num_gpus is not None:
            return self.num_gpus
        return float(sum(device.kind == "cuda" for device in self.settings.devices))
