"""The manifests for Kubernetes and KServe: valid by their schemas, and true to the image they run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import kubernetes_validate
import pytest
import yaml

from demi.server.settings import ServeSettings
from tests.deploy.dockerfile import ROOT, image
from tests.server.bundles import GOLDEN_X, MIXED, write_bundle
from tests.server.processes import serving

FOLDER = ROOT / "deploy/kubernetes"
KSERVE: dict[str, Any] = json.loads(Path(__file__).with_name("kserve.json").read_text())
KUBERNETES_VERSION = "1.31"

Resource = dict[str, Any]


def resources() -> list[Resource]:
    """Every resource of every file."""
    return [found for path in sorted(FOLDER.glob("*.yaml")) for found in yaml.safe_load_all(path.read_text())]


def resource(kind: str, suffix: str = "") -> Resource:
    """The one resource of a kind, or its twin for a GPU."""
    (found,) = (found for found in resources() if found["kind"] == kind and suffix == twin(found))
    return found


def twin(found: Resource) -> str:
    """Suffix of a resource's name: `-gpu` for a GPU."""
    return "-gpu" if found["metadata"]["name"].endswith("-gpu") else ""


def validate(found: Resource) -> None:
    """Raise where a resource breaks its schema: Kubernetes' own, or KServe's and Kubernetes' for its containers."""
    if found["kind"] not in KSERVE:
        kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True)
        return
    jsonschema.validate(found, KSERVE[found["kind"]])
    if containers := found["spec"].get("containers"):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": found["metadata"], "spec": {"containers": containers}}
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


def containers() -> list[Resource]:
    """The containers that run Demi."""
    return [
        *(resource("Deployment", suffix)["spec"]["template"]["spec"]["containers"][0] for suffix in ("", "-gpu")),
        resource("ServingRuntime")["spec"]["containers"][0],
    ]


@pytest.mark.parametrize("found", resources(), ids=lambda found: found["kind"])
def test_manifests_follow_their_schema(found):
    """Every resource has the fields its kind knows, of their types, and those it must have."""
    validate(found)


def changes(found: Resource) -> Iterator[tuple[str, Resource]]:
    """The resource with one thing wrong, for several things."""
    for path, value in (
        (("spec", "replicsa"), 1),
        (("spec", "template", "spec", "containers", 0, "ports"), "8000"),
        (("spec", "containers", 0, "livenessProb"), {}),
        (("spec", "supportedModelFormats", 0, "autoSelect"), "yes"),
        (("spec", "predictor", "model", "modelFormat"), None),
        (("spec", "predictor", "modle"), {}),
        (("spec", "ports", 0, "port"), "http"),
    ):
        copy = json.loads(json.dumps(found))
        place = copy
        try:
            for step in path[:-1]:
                place = place[step]
        except KeyError:
            continue
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        yield f"{found['kind']} {path[-1]}", copy


@pytest.mark.parametrize(
    "wrong",
    [pytest.param(wrong, id=name) for found in resources() for name, wrong in changes(found)],
)
def test_a_wrong_resource_is_reported(wrong):
    """A field that its kind does not know, one of the wrong type, and one that is missing."""
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(wrong)


@pytest.mark.parametrize("container", containers(), ids=["Deployment", "Deployment-gpu", "ServingRuntime"])
def test_containers_run_as_the_image_expects(container):
    """The image's ports, a read-only root, and an unprivileged account."""
    context = {
        **resource("Deployment")["spec"]["template"]["spec"]["securityContext"],
        **container["securityContext"],
    }

    assert {port["containerPort"] for port in container["ports"]} <= set(image("server").ports)
    assert "serve" == container["args"][0]
    assert context["readOnlyRootFilesystem"]
    assert context["runAsNonRoot"]
    assert image("server").user == f"{context['runAsUser']}:{context['runAsGroup']}"


@pytest.mark.parametrize("container", containers(), ids=lambda container: f"{container['name']} {container['image']}")
def test_system_calls_are_filtered(container):
    """By the profile of the container's runtime, whether the pod or the container says so."""
    contexts = [container["securityContext"]] + [
        resource("Deployment", suffix)["spec"]["template"]["spec"]["securityContext"]
        for suffix in ("", "-gpu")
        if container["name"] == "demi"
    ]

    assert {"type": "RuntimeDefault"} in [context.get("seccompProfile") for context in contexts]


def test_no_pod_holds_a_token_of_the_cluster():
    """No pod has a token of the cluster that an intruder could use."""
    pods = [resource("Deployment", suffix)["spec"]["template"]["spec"] for suffix in ("", "-gpu")]

    assert [False] * 3 == [
        pod["automountServiceAccountToken"] for pod in (*pods, resource("InferenceService")["spec"]["predictor"])
    ]


@pytest.mark.parametrize("suffix", ["", "-gpu"])
def test_pods_have_time_to_drain(suffix):
    """Kubernetes waits longer than the wait before the signal and the server's patience together."""
    spec = resource("Deployment", suffix)["spec"]["template"]["spec"]
    (wait,) = (word for word in spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] if "sleep" in word)
    before_s = float(wait.split("sleep(")[1].split(")")[0])

    assert spec["terminationGracePeriodSeconds"] > before_s + ServeSettings().drain_s


@pytest.mark.parametrize("suffix", ["", "-gpu"])
def test_the_service_leads_to_the_pods(suffix):
    """Its selector matches the pods' labels, and its ports are names of theirs."""
    template = resource("Deployment", suffix)["spec"]["template"]
    service = resource("Service", suffix)["spec"]
    names = {port["name"] for port in template["spec"]["containers"][0]["ports"]}

    assert service["selector"].items() <= template["metadata"]["labels"].items()
    assert (
        resource("Deployment", suffix)["spec"]["selector"]["matchLabels"].items()
        <= template["metadata"]["labels"].items()
    )
    assert {port["targetPort"] for port in service["ports"]} <= names


@pytest.mark.parametrize("suffix", ["", "-gpu"])
def test_the_service_sets_nothing(suffix):
    """Kubernetes would write the address of a Service named `demi` into DEMI_PORT."""
    assert resource("Deployment", suffix)["spec"]["template"]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("suffix", ["", "-gpu"])
def test_volumes_are_there(suffix):
    """Every folder that is mounted is one of the pod's volumes, and the models are where the server looks."""
    spec = resource("Deployment", suffix)["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}

    assert set(mounts) == {volume["name"] for volume in spec["volumes"]}
    assert spec["containers"][0]["args"][1] == mounts["models"]


def paths(value: object, place: str = "") -> dict[str, object]:
    """Every leaf of a resource by its place."""
    if isinstance(value, dict):
        return {path: leaf for key, each in value.items() for path, leaf in paths(each, f"{place}/{key}").items()}
    if isinstance(value, list):
        return {
            path: leaf for index, each in enumerate(value) for path, leaf in paths(each, f"{place}/{index}").items()
        }
    return {place: value}


def test_the_deployment_on_a_gpu_is_the_same():
    """It has a name of its own, asks for a GPU, tolerates nodes kept for them, and needs more memory; the rest agrees."""
    both = [paths([resource(kind, suffix) for kind in ("Deployment", "Service")]) for suffix in ("", "-gpu")]
    differ = {path for path in both[0].keys() | both[1].keys() if both[0].get(path) != both[1].get(path)}
    spec = resource("Deployment", "-gpu")["spec"]
    (container,) = spec["template"]["spec"]["containers"]

    assert {path.rsplit("/", 1)[-1] for path in differ} == {
        *("name", "image", "type", "memory", "gpu", "key", "operator", "effect", "failureThreshold")
    }
    assert "demi:gpu" == container["image"]
    assert 1 == container["resources"]["limits"]["nvidia.com/gpu"]
    assert "Recreate" == spec["strategy"]["type"]  # a pod holds its GPU until it ends


def test_the_example_fits_the_runtime():
    """The InferenceService names the runtime, a format it supports, and a protocol it speaks."""
    runtime = resource("ServingRuntime")
    model = resource("InferenceService")["spec"]["predictor"]["model"]
    formats = [
        {"name": entry["name"], "version": entry["version"]} for entry in runtime["spec"]["supportedModelFormats"]
    ]

    assert runtime["metadata"]["name"] == model["runtime"]
    assert model["modelFormat"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_the_paths_that_are_probed_answer(tmp_path):
    """Every path of a probe answers 200 on a server that is ready, from a folder as KServe mounts it."""
    write_bundle(tmp_path / "models/1", MIXED, golden=GOLDEN_X)
    probes = [container[f"{kind}Probe"] for container in containers() for kind in ("startup", "liveness", "readiness")]
    with serving(tmp_path / "models") as process:
        codes = {path: httpx.get(process.url + path).status_code for path in (p["httpGet"]["path"] for p in probes)}

    assert {"/v2/health/live": 200, "/v2/health/ready": 200} == codes
