"""Arguments of the Ray application, the deployment's options, and settings without effect."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import demi.ray
from demi.errors import InputError
from demi.server.ray.args import WITHOUT_EFFECT, Args
from demi.server.ray.options import DEREGISTER_S, ENVIRONMENT, deployment_options, missing_environment
from demi.server.settings import ServeSettings, table


def args(**values: object) -> Args:
    """Return arguments as Ray makes them: from a dictionary."""
    return Args.model_validate({"models": "models/", **values})


def test_the_builder_is_annotated_with_a_class():
    """Ray reads the annotation as it stands: were it a string, the builder would get a plain dictionary."""
    (parameter,) = inspect.signature(demi.ray.app).parameters.values()

    assert parameter.annotation is Args


def test_settings_are_those_of_demi_serve():
    """Text as on a command line, and values as in YAML."""
    found = args(max_batch="16", allow_model_control=True, timeout=2.5).settings

    assert (16, True, 2.5) == (found.max_batch, found.allow_model_control, found.timeout_s)


def test_a_setting_that_does_not_exist_is_refused():
    """A typing error does not start a cluster with default settings."""
    with pytest.raises(InputError, match="not a setting") as caught:
        _ = args(max_bach=16).settings

    assert "max_batch" in str(caught.value)


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_settings_without_effect_are_refused_with_a_reason(name):
    """By either of its names, a setting that a replica ignores is an error that says who decides instead."""
    row = table()[name]
    value = {"host": "0.0.0.0", "grpc": "on", "console": "on", "allow_shared_memory": "on"}.get(name, "1")

    for spelled in (name, row.flag.removeprefix("--").replace("-", "_")):
        with pytest.raises(InputError, match="has no effect under Ray") as caught:
            _ = args(**{spelled: value}).settings
        assert WITHOUT_EFFECT[name] == caught.value.hint


def test_every_setting_without_effect_exists():
    """The table does not name settings that are gone."""
    assert set(table()) >= set(WITHOUT_EFFECT)


def test_arguments_travel_to_other_nodes():
    """The settings of a replica survive pickling."""
    found = args(shadow="0.01,m=0.5", device="cuda:0").settings

    assert found == pickle.loads(pickle.dumps(found))


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"replicas": 3, "max_replicas": 2}, {"num_gpus": -1}])
def test_impossible_numbers_are_refused(wrong):
    """Before anything is deployed."""
    with pytest.raises(ValidationError):
        args(**wrong)


def test_demis_queue_governs():
    """Ray's limit of requests per replica is above all queues, so that a full one answers 503 with Retry-After."""
    found = deployment_options(args(replicas=2, max_queue=5000))

    assert found["max_ongoing_requests"] > 5000
    assert 2 == found["num_replicas"]


def test_no_request_is_cut_off():
    """New replicas are ready before old ones stop, and those have time for deregistration and draining."""
    found = deployment_options(args(drain=40))

    assert 0 < found["max_surge_percent"]
    assert found["graceful_shutdown_timeout_s"] > 40 + DEREGISTER_S


def test_replicas_are_added_by_requests_in_flight():
    """By default at one and a half batches for each instance."""
    found = deployment_options(args(replicas=1, max_replicas=4, max_batch=8, instances=2))

    assert "num_replicas" not in found
    assert (1, 4, 24) == tuple(
        found["autoscaling_config"][name] for name in ("min_replicas", "max_replicas", "target_ongoing_requests")
    )


@pytest.mark.parametrize(
    ("given", "gpus"), [({}, 0), ({"device": "cuda"}, 1), ({"device": "cuda:0,cuda:1"}, 2), ({"num_gpus": 0.5}, 0.5)]
)
def test_gpus_follow_from_the_device(given, gpus):
    """Unless they are given, as a fraction for models that share one."""
    assert gpus == deployment_options(args(**given))["ray_actor_options"]["num_gpus"]


def test_replicas_share_the_loop_that_reads_requests():
    """Of this deployment alone: the user code of others in the cluster may block."""
    found = deployment_options(args())["ray_actor_options"]["runtime_env"]["env_vars"]

    assert {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"} == found
    assert not found.keys() & ENVIRONMENT.keys()


def test_the_printed_variables_are_read_by_a_shell():
    """`eval "$(python -m demi.ray)"` sets every variable, the one with a space included."""
    printed = subprocess.run([sys.executable, "-m", "demi.ray"], capture_output=True, text=True, check=True).stdout
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    script = f'{printed}\n"{sys.executable}" -c "{code}"'
    found = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout

    for name, value in ENVIRONMENT.items():
        assert f'"{name}": "{value}"' in found


def test_a_cluster_without_the_variables_is_noticed():
    """Each missing variable is named."""
    assert [] == missing_environment(ENVIRONMENT)
    assert "RAY_SERVE_ENABLE_HA_PROXY" in missing_environment({})


def test_an_update_replaces_a_quarter_at_a_time():
    """More at a time need more room, and their start takes time from those that answer."""
    assert [25, 100] == [deployment_options(args(**given))["max_surge_percent"] for given in ({}, {"surge": 100})]


def test_models_may_be_at_an_address():
    """Each node downloads them; a text that is no address is refused before anything starts."""
    place = args(models="s3://bucket/models").place

    assert (Path("models"), "s3://bucket/models") == (args(models="models").place, str(place))
    with pytest.raises(InputError, match="is not an address"):
        _ = args(models="ftp://host/models").place


def test_replicas_do_not_decide_on_drift_alone():
    """Their settings say so, also after a copy, as between processes."""
    settings = args(on_drift="fp32").settings

    assert (False, "fp32") == (pickle.loads(pickle.dumps(settings)).decides_alone, settings.on_drift)
    assert not dataclasses.replace(settings, timeout_s=1.0).decides_alone
    assert ServeSettings().decides_alone
