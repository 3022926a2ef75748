"""The manifest for Ray: its application's arguments, the settings of the cluster, and who may connect."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from demi.deploy.render import RAY_ENVIRONMENT, RAY_VERSION
from demi.errors import InputError
from demi.server.ray.args import Args
from demi.server.ray.options import ENVIRONMENT, deployment_options
from demi.server.settings import ServeSettings
from tests.deploy.dockerfile import ROOT
from tests.deploy.test_kubernetes import OPTIONS, one, rendered

ON_A_VOLUME = [name for name, options in OPTIONS.items() if options.claim]


def service(name: str) -> dict[str, Any]:
    """Return the spec of the RayService."""
    spec: dict[str, Any] = one(rendered("ray", OPTIONS[name]), "RayService")["spec"]
    return spec


def application(name: str) -> dict[str, Any]:
    """Return the one application of its configuration."""
    (found,) = yaml.safe_load(service(name)["serveConfigV2"])["applications"]
    return dict(found)


@pytest.mark.parametrize("name", ON_A_VOLUME)
def test_the_application_takes_its_arguments(name):
    """Each is an argument of the builder or a setting that has an effect under Ray."""
    args = Args(**application(name)["args"])

    assert "demi.ray:app" == application(name)["import_path"]
    assert isinstance(args.settings, ServeSettings)
    assert args.gpus == ("gpu" in name)
    assert deployment_options(args)


def test_it_scales_by_requests_in_flight():
    """By the model with the largest batches; a fixed number does not scale."""
    scaled = deployment_options(Args(**application("cpu")["args"]))["autoscaling_config"]

    assert (2, 10, 48) == tuple(scaled[key] for key in ("min_replicas", "max_replicas", "target_ongoing_requests"))
    assert 1 == deployment_options(Args(**application("fixed")["args"]))["num_replicas"]


@pytest.mark.parametrize("name", ON_A_VOLUME)
def test_no_node_lacks_the_settings_that_keep_requests(name):
    """Head and workers have every variable."""
    cluster = service(name)["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert ENVIRONMENT == {each["name"]: each["value"] for each in container["env"]}


def test_the_settings_are_those_of_the_application():
    """Manifests are written without the server's package."""
    assert ENVIRONMENT == RAY_ENVIRONMENT


def test_the_version_is_that_of_the_extra():
    """KubeRay compares it with the image's."""
    (line,) = (line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("ray = "))

    assert f">={RAY_VERSION.removesuffix('.0')}" in line


def test_the_head_serves_nothing():
    """A replica on the head would end with it."""
    assert "0" == service("cpu")["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"]


def test_pods_outlive_the_drain():
    """Kubernetes waits longer than Ray's removal of a replica and the server's own drain together."""
    args = Args(**application("cpu")["args"])
    (group,) = service("cpu")["rayClusterConfig"]["workerGroupSpecs"]

    assert (
        group["template"]["spec"]["terminationGracePeriodSeconds"]
        > deployment_options(args)["graceful_shutdown_timeout_s"]
    )


def test_strangers_cannot_reach_rays_ports():
    """From elsewhere, only the two ports of the service."""
    policy = one(rendered("ray", OPTIONS["cpu"]), "NetworkPolicy")["spec"]
    cluster, others = policy["ingress"]

    assert "ports" not in cluster
    assert [8000, 8001] == [port["port"] for port in others["ports"]]


def test_models_in_a_bucket_are_refused():
    """A replica starts on any node, and finds its models at a path."""
    with pytest.raises(InputError, match="at one path"):
        rendered("ray", OPTIONS["keys"])
