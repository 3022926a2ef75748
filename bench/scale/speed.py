"""Requests per second of Demi on Ray, beside an application on Ray that does nothing, in turns.

The application runs once as Ray runs applications by default, in another thread than the one that reads requests, and once in
that thread, where Demi runs.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.scale.cluster import HTTP_PORT, cpu_s, deploy, ray_cluster, replicas
from bench.scale.goals import Goal
from bench.scale.load import http_request
from bench.scale.load import measure as measure_load
from bench.scale.models import FEATURES, mlp_request, write_models
from demi.server.ray.options import REPLICA_ENVIRONMENT

TURNS = 4
CONNECTIONS = (1, 8)
BODY = b"x" * 4 * FEATURES


class Bare:
    """An application that reads a request and answers 200, and nothing else: what Ray itself costs."""

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application."""

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                for stage in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{stage}.complete"})
                return
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"40")]})
            await send({"type": "http.response.body", "body": bytes(40)})

        return answer


def measure(repetitions: int, seconds: float) -> Iterator[Goal]:
    """Measure all in turns, at each number of connections, and return Demi's ratio to Ray's default at the largest."""
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        deploy(write_models(Path(folder)), trial=False, precision="half", runtime="onnxruntime")
        subjects = (
            _bare("bare", {}),
            _bare("same-thread", REPLICA_ENVIRONMENT),
            Subject("demi", mlp_request(), replicas("default")[0]),
        )
        for connections in CONNECTIONS:
            ratio, other = _turns(subjects, connections, seconds)
            print(f"  Demi / bare, {connections} connections: {ratio:.2f}; in the same thread: {other:.2f}")
    yield Goal(f"Demi / a bare application on Ray, {CONNECTIONS[-1]} connections", ratio, 0.75, at_least=True)


@dataclass(frozen=True, slots=True)
class Subject:
    """An application with one replica: the request to it, and the replica's process."""

    name: str
    request: bytes
    pid: int


def _turns(subjects: Sequence[Subject], connections: int, seconds: float) -> list[float]:
    """Return the median ratios of the last subject's requests per second to those of the others; print each turn.

    The CPU time of the replica for a request says more than the time where other processes take turns, too.
    """
    found: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for _ in range(TURNS):
        for subject in subjects:
            before = cpu_s(subject.pid)
            result = measure_load(subject.request, HTTP_PORT, connections, seconds)
            cpu_ms = 1000 * (cpu_s(subject.pid) - before) / result.answered
            print(f"  {subject.name}, {connections} connections: CPU {cpu_ms:.2f} ms a request, {result}", flush=True)
            found[subject.name].append(result.per_second)
    *others, last = found.values()
    return [statistics.median(b / a for a, b in zip(other, last, strict=True)) for other in others]


def _bare(name: str, environment: Mapping[str, str]) -> Subject:
    """Deploy the bare application with the options of Demi's deployment that concern speed."""
    from ray import serve

    actor = {"num_cpus": 0.1, "runtime_env": {"env_vars": dict(environment)}}
    options = {"max_ongoing_requests": 1000, "logging_config": {"enable_access_log": False}}
    deployment = serve.deployment(name="Bare", ray_actor_options=actor, **options)(serve.ingress()(Bare))
    serve.run(deployment.bind(), name=name, route_prefix=f"/{name}")
    return Subject(name, http_request(f"/{name}/", BODY, HTTP_PORT), replicas(name, "Bare")[0])
