"""Options of the deployment, and the settings of the cluster without which requests are lost or slow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from demi.server.ray.args import Args
from demi.server.settings import ServeSettings

ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(128 * 2**10),
}
"""Variables that every node of the cluster needs when Ray starts.

Ray's own proxy, in Python, is several times slower than HAProxy. By default HAProxy does not repeat a request whose replica
died while computing it; inference can be repeated, and so can every other request to Demi. It can repeat only what fits into
its buffer: raise the size, in bytes, above the largest body that has to survive.
"""

REPLICA_ENVIRONMENT = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""Variables of replicas alone: Demi runs on the event loop that reads the requests. By default Ray gives user code a loop in
another thread, because most user code blocks; Demi does not, and passing each request to another thread and back cost half as
much as Ray's own part."""

DEREGISTER_S = 30
"""Time that Ray keeps a replica reachable once it is to stop (RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S)."""
BUFFER_S = 5
"""Time for the end of a replica after its last request."""

UNBOUNDED = 100_000
"""Requests that Ray may send to a replica. Demi bounds the queue of each model and the bytes in flight, and answers 503;
Ray's default of 5 would starve the batcher."""


def deployment_options(args: Args) -> dict[str, Any]:
    """Return the options of `serve.deployment` for these arguments."""
    settings = args.settings
    return {
        **_replicas(args, settings),
        "max_ongoing_requests": UNBOUNDED,
        "max_surge_percent": args.surge,  # new replicas are ready before as many old ones stop
        "graceful_shutdown_timeout_s": settings.drain_s + DEREGISTER_S + BUFFER_S,
        "health_check_period_s": 5.0,
        "max_constructor_retry_count": 3,
        "ray_actor_options": {
            "num_cpus": args.num_cpus,
            "num_gpus": args.gpus,
            "runtime_env": {"env_vars": REPLICA_ENVIRONMENT},
        },
        "logging_config": {"enable_access_log": False},  # Demi has its own, `access_log`
    }


def missing_environment(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables that this process should have inherited from Ray's start and has not."""
    return [name for name in ENVIRONMENT if name not in environ]


def _replicas(args: Args, settings: ServeSettings) -> dict[str, Any]:
    if args.max_replicas is None:
        return {"num_replicas": args.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": args.replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": args.in_flight or _in_flight(settings),
            "upscale_delay_s": 10.0,
            "downscale_delay_s": 300.0,  # a model takes minutes to warm up, and load comes back
        }
    }


def _in_flight(settings: ServeSettings) -> float:
    """Return 1.5 batches for each instance: one batch runs, and half of the next one waits."""
    return math.ceil(1.5 * (settings.max_batch or 8) * len(settings.places))
