"""Requests per second of Demi on Ray, beside an application on Ray that does nothing, in turns."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.scale.cluster import HTTP_PORT, deploy, ray_cluster
from bench.scale.goals import Goal
from bench.scale.load import http_request
from bench.scale.load import measure as measure_load
from bench.scale.models import FEATURES, mlp_request, write_models

TURNS = 4
CONNECTIONS = (1, 8)
BARE = http_request("/bare/", b"x" * 4 * FEATURES, HTTP_PORT)


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
    """Measure both in turns, at each number of connections, and return the ratio at the largest."""
    ratios = {}
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        deploy(write_models(Path(folder)), trial=False, precision="half", runtime="onnxruntime")
        _deploy_bare()
        for connections in CONNECTIONS:
            turns: dict[str, list[float]] = {"bare": [], "demi": []}
            for _ in range(TURNS):
                for name, request in (("bare", BARE), ("demi", mlp_request())):
                    found = measure_load(request, HTTP_PORT, connections, seconds)
                    turns[name].append(found.per_second)
                    print(f"  {name}, {connections} connections: {found}")
            ratios[connections] = statistics.median(b / a for a, b in zip(turns["bare"], turns["demi"], strict=True))
            print(f"  Demi / bare, {connections} connections: {ratios[connections]:.2f}")
    yield Goal("Demi / a bare application on Ray, 8 connections", ratios[8], 0.75, at_least=True)


def _deploy_bare() -> None:
    """Deploy the bare application with the options of Demi's deployment that concern speed."""
    from ray import serve

    options = {"max_ongoing_requests": 1000, "logging_config": {"enable_access_log": False}}
    deployment = serve.deployment(name="Bare", ray_actor_options={"num_cpus": 0.1}, **options)(serve.ingress()(Bare))
    serve.run(deployment.bind(), name="bare", route_prefix="/bare")
