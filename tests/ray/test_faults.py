"""No request is lost when a replica dies, when the deployment is updated, or when it shrinks."""

from __future__ import annotations

import time
from pathlib import Path

from bench.scale.load import Result, http_request, under_load
from tests.server.fakes import message

REQUEST = http_request("/v2/models/scale/infer", message([1.0, 2.0, 3.0], shape=[1, 3]), 8000)
LARGE = http_request("/v2/models/scale/infer", message([1.0, 2.0, 3.0], shape=[1, 3]) + b" " * 25_000, 8000)
"""25 KB: above HAProxy's own buffer, and below the one that `python -m demi.ray` sets."""
OPTIONS = {
    "trial": False,
    "precision": "half",
    "runtime": "onnxruntime",
    "allow_model_control": True,
    "on_drift": "fp32",
}


def assert_none_lost(result: Result) -> None:
    """Check that every request was answered with 200, of which there were some."""
    assert ([], {200}, 0) == (result.lost, set(result.statuses), result.failed), (str(result), result.first_error)
    assert 8 < result.answered


def test_a_killed_replica_loses_no_request(cluster):
    """HAProxy repeats what the dead replica had not answered, bodies above its own buffer included."""
    from bench.scale.cluster import kill, replicas, wait_for_replicas

    for request in (REQUEST, LARGE):
        with under_load(request, 8000, 8) as result:
            time.sleep(1)
            kill(replicas()[0])
            time.sleep(3)
        wait_for_replicas(2)
        assert_none_lost(result)


def test_an_update_and_a_smaller_deployment_lose_no_request(cluster, models: Path):
    """New replicas are ready before old ones stop, and those answer what they have."""
    from bench.scale.cluster import deploy, wait_for_replicas

    with under_load(REQUEST, 8000, 8) as update:
        deploy(models, replicas=2, max_batch=2, **OPTIONS)
    with under_load(REQUEST, 8000, 8) as smaller:
        deploy(models, replicas=1, max_batch=2, **OPTIONS)
        wait_for_replicas(1)
    deploy(models, replicas=2, **OPTIONS)

    assert_none_lost(update)
    assert_none_lost(smaller)
