"""Requests under load while replicas and nodes die, the deployment is updated, or it shrinks: none may be lost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.scale.cluster import HTTP_PORT, deploy, kill, ray_cluster, ray_nodes, replicas, wait_for_replicas
from bench.scale.goals import Goal
from bench.scale.load import Result, under_load
from bench.scale.load import measure as measure_load
from bench.scale.models import mlp_request, write_models
from bench.scale.sleeping import SleepingReplica

CONNECTIONS = 8
REPLICAS = 3
AFTER_S = 3.0
"""Load goes on for so long after each fault."""


def kill_replicas(repetitions: int, seconds: float) -> Iterator[Goal]:
    """End a replica with SIGKILL, again and again."""
    with _serving():
        yield _lost("killed replicas", _repeat(repetitions, lambda turn: kill(replicas()[turn % REPLICAS])))


def kill_nodes(repetitions: int, seconds: float) -> Iterator[Goal]:
    """End one of three nodes, with the replicas on it, again and again; each time another node takes its place."""
    with ray_nodes(3) as nodes, tempfile.TemporaryDirectory() as folder:
        _deploy(write_models(Path(folder)), num_cpus=0.9)
        yield _lost("killed nodes", _repeat(repetitions, lambda _: nodes.replace_one()))


def update(repetitions: int, seconds: float) -> Iterator[Goal]:
    """Replace all replicas by ones with other settings, again and again, each time after as long a time without."""
    with _serving() as models:
        usual, results = [], []
        length_s = seconds
        for turn in range(repetitions):
            usual.append(measure_load(mlp_request(), HTTP_PORT, CONNECTIONS, length_s))
            print(f"  without an update: {usual[-1]}")
            results += _repeat(1, lambda turn: _deploy(models, max_batch=2 + turn % 2), first=turn)
            length_s = results[-1].seconds
        yield _lost("updates", results)
        longest, without = (max(each.percentile_ms(100) for each in found) for found in (results, usual))
        print(f"  longest answer: {longest:.0f} ms during updates, {without:.0f} ms without")
        yield Goal("longest answer during updates / without, one replica after the other", longest / without, 3)


def shrink(repetitions: int, seconds: float) -> Iterator[Goal]:
    """Go from three replicas to one, again and again."""
    with _serving() as models:
        results = []
        for turn in range(repetitions):
            _deploy(models)
            wait_for_replicas(REPLICAS)
            results += _repeat(1, lambda _: _shrink_to_one(models), count=1, first=turn)
        yield _lost("times from 3 replicas to 1", results)


def _shrink_to_one(models: Path) -> None:
    _deploy(models, replicas=1)
    wait_for_replicas(1)


@contextmanager
def _serving() -> Iterator[Path]:
    """Serve with three replicas, and yield the folder of models."""
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        models = write_models(Path(folder))
        _deploy(models)
        yield models


def _deploy(models: Path, **changes: object) -> None:
    options = {"replicas": REPLICAS, "max_batch": 1, "trial": False, **changes}
    deploy(models, replica=SleepingReplica, **options)


def _repeat(repetitions: int, fault: Callable[[int], None], count: int = REPLICAS, first: int = 0) -> list[Result]:
    """Cause a fault under load, again and again, each time once all replicas serve again."""
    results = []
    for turn in range(first, first + repetitions):
        with under_load(mlp_request(), HTTP_PORT, CONNECTIONS) as result:
            time.sleep(1)
            fault(turn)
            time.sleep(AFTER_S)
        print(f"  {turn + 1}: {result}", *result.lost[:3], flush=True)
        results.append(result)
        wait_for_replicas(count)
    return results


def _lost(what: str, results: list[Result]) -> Goal:
    answered = sum(result.answered for result in results)
    failed = sum(result.failed for result in results)
    return Goal(f"requests lost or failed in {len(results)} {what}, of {answered + failed}", failed, 0)
