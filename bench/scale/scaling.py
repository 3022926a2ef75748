"""Throughput of 1, 2 and 4 replicas whose model waits 20 ms a run, one row each: how much of it the way there costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.scale.cluster import HTTP_PORT, deploy, ray_cluster, wait_for_replicas
from bench.scale.goals import Goal
from bench.scale.load import measure as measure_load
from bench.scale.models import mlp_request, write_models
from bench.scale.sleeping import DEVICE_S, SleepingReplica

REPLICAS = (1, 2, 4)
CLIENTS = 4
"""Of each replica."""


def measure(repetitions: int, seconds: float) -> Iterator[Goal]:
    """Measure each number of replicas, and return the efficiency at four."""
    per_second = {}
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        models = write_models(Path(folder))
        for count in REPLICAS:
            deploy(models, replica=SleepingReplica, replicas=count, max_batch=1, trial=False)
            wait_for_replicas(count)
            measure_load(mlp_request(), HTTP_PORT, CLIENTS * count, 1.0)
            found = measure_load(mlp_request(), HTTP_PORT, CLIENTS * count, seconds)
            per_second[count] = found.per_second
            print(f"  {count} replicas: {found}")
    print(f"  one device can do {1 / DEVICE_S:g} req/s")
    yield Goal("throughput of 4 replicas / 4 x that of 1", per_second[4] / (4 * per_second[1]), 0.9, at_least=True)
