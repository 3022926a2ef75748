"""The manifests for Kubernetes and KServe: valid by their schemas, and true to the image they run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import kubernetes_validate
import pytest
import yaml

from demi.deploy.models import DeployedModel
from demi.deploy.options import DeployOptions
from demi.deploy.render import DRAIN_S, PRESTOP_S, render_manifests
from demi.server.settings import ServeSettings
from tests.deploy.dockerfile import ROOT, image
from tests.deploy.promql import labels, metrics
from tests.deploy.schemas import Resource, pods, validate
from tests.server.bundles import GOLDEN_X, MIXED, write_bundle
from tests.server.processes import serving

FOLDER = ROOT / "deploy/kubernetes"
MODELS = (
    DeployedModel("minilm", versions=(1, 2), file_bytes=131 << 20, max_batch=32),
    DeployedModel("digits", versions=(1,), file_bytes=1 << 20, max_batch=1),
)
OPTIONS = {
    "cpu": DeployOptions(),
    "gpu": DeployOptions(name="demi-gpu", device="cuda"),
    "spare gpu": DeployOptions(device="cuda", spare_gpu=True, instances=2),
    "fixed": DeployOptions(namespace="prod", replicas=(1, 1), without=frozenset({"disruption", "monitor", "network"})),
    "keys": DeployOptions(api_keys="demi-keys", source="s3://models/demi", namespace="prod"),
}


def rendered(target: Any, options: DeployOptions, models: tuple[DeployedModel, ...] = MODELS) -> list[Resource]:
    """Return the resources for a target."""
    return list(yaml.safe_load_all(render_manifests(target, models, options)))


def one(found: list[Resource], kind: str) -> Resource:
    """Return the one resource of a kind."""
    (resource,) = (each for each in found if each["kind"] == kind)
    return resource


CASES = [
    pytest.param(each, id=f"{target} {name} {each['kind']} {each['metadata']['name']}")
    for target in ("kubernetes", "kserve", "ray")
    for name, options in OPTIONS.items()
    if options.claim or target != "ray"
    for each in rendered(target, options)
]


@pytest.mark.parametrize("found", CASES)
def test_manifests_follow_their_schema(found):
    """Every resource has fields that its kind knows, of the right types, and those it must have."""
    validate(found)


def changes(found: Resource) -> Iterator[tuple[str, Resource]]:
    """Yield the resource with one thing wrong, for several things."""
    for path, value in (
        (("spec", "replicsa"), 1),
        (("spec", "template", "spec", "containers", 0, "ports"), "8000"),
        (("spec", "containers", 0, "livenessProb"), {}),
        (("spec", "volumes", 0, "emptyDirr"), {}),
        (("spec", "supportedModelFormats", 0, "autoSelect"), "yes"),
        (("spec", "predictor", "model", "modelFormat"), None),
        (("spec", "predictor", "modle"), {}),
        (("spec", "predictor", "autoScaling", "metrics", 0, "external", "metric", "querry"), "up"),
        (("spec", "ports", 0, "port"), "http"),
        (("spec", "podMetricsEndpoints", 0, "porrt"), "http"),
        (("spec", "triggers", 0, "metadata"), None),
        (("spec", "maxUnavailable"), []),
        (("spec", "policyTypes"), "Ingress"),
    ):
        copy = json.loads(json.dumps(found))
        place = copy
        try:
            for step in path[:-1]:
                place = place[step]
            if value is None:
                del place[path[-1]]
            else:
                place[path[-1]] = value
        except (KeyError, IndexError):
            continue
        yield f"{found['kind']} {path[-1]}", copy


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(wrong, id=name)
        for target in ("kubernetes", "kserve")
        for found in rendered(target, OPTIONS["cpu"], MODELS[:1])
        for name, wrong in changes(found)
    ],
)
def test_a_wrong_resource_is_reported(wrong):
    """A field that its kind does not know, one of the wrong type, and one that is missing."""
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(wrong)


def containers() -> list[Any]:
    """Return every container that runs Demi, with the security context of its pod."""
    found = []
    for target in ("kubernetes", "kserve"):
        for name, options in OPTIONS.items():
            for resource in rendered(target, options):
                found += [
                    pytest.param(pod["containers"][0], pod.get("securityContext", {}), id=f"{target} {name}")
                    for pod in pods(resource)
                ]
    return found


@pytest.mark.parametrize(("container", "outer"), containers())
def test_containers_run_as_the_image_expects(container, outer):
    """The image's ports, a read-only root with a writable /tmp, an unprivileged account, filtered system calls."""
    context = outer | container["securityContext"]

    assert {port["containerPort"] for port in container["ports"]} <= set(image("server").ports)
    assert "serve" == container["args"][0]
    assert context["readOnlyRootFilesystem"]
    assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert context["runAsNonRoot"]
    assert image("server").user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert {"type": "RuntimeDefault"} == context["seccompProfile"]


@pytest.mark.parametrize(("container", "outer"), containers())
def test_the_cpu_is_not_throttled(container, outer):
    """A runtime starts a thread for every core it sees; a limit below that would stop all of them for a while."""
    assert "cpu" not in container["resources"]["limits"]
    assert "2" == container["resources"]["requests"]["cpu"]


def specs() -> list[Any]:
    """Return the part of each Deployment and InferenceService that belongs to the pod."""
    return [
        *(
            one(rendered("kubernetes", options), "Deployment")["spec"]["template"]["spec"]
            for options in OPTIONS.values()
        ),
        *(
            one(rendered("kserve", options, MODELS[:1]), "InferenceService")["spec"]["predictor"]
            for options in OPTIONS.values()
        ),
    ]


@pytest.mark.parametrize("spec", specs())
def test_no_pod_holds_a_token_of_the_cluster(spec):
    """An intruder could use it."""
    assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("spec", specs())
def test_services_set_nothing(spec):
    """Kubernetes would write the address of a Service named `demi` into DEMI_PORT."""
    assert spec["enableServiceLinks"] is False


@pytest.mark.parametrize("spec", specs())
def test_pods_have_time_to_drain(spec):
    """Kubernetes waits longer than the wait before the signal and the server's own time together."""
    assert spec["terminationGracePeriodSeconds"] > PRESTOP_S + ServeSettings().drain_s


def test_the_drain_time_is_that_of_the_server():
    """The manifests are written without the server's package."""
    assert ServeSettings().drain_s == DRAIN_S


@pytest.mark.parametrize(("container", "outer"), containers())
def test_servers_are_signalled_after_their_address_is_gone(container, outer):
    """Both Deployments and KServe's runtimes wait before the signal."""
    assert {"seconds": PRESTOP_S} == container["lifecycle"]["preStop"]["sleep"]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_service_leads_to_the_pods(options):
    """Selectors match the pods' labels, and ports are names of theirs."""
    found = rendered("kubernetes", options)
    template = one(found, "Deployment")["spec"]["template"]
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    selectors = [
        one(found, "Service")["spec"]["selector"],
        one(found, "Deployment")["spec"]["selector"]["matchLabels"],
        *(
            each["spec"]["selector"]["matchLabels"]
            for each in found
            if each["kind"] in ("PodDisruptionBudget", "PodMonitor")
        ),
        *(each["spec"]["podSelector"]["matchLabels"] for each in found if each["kind"] == "NetworkPolicy"),
        *(
            each["labelSelector"]["matchLabels"]
            for each in one(found, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
        ),
    ]

    assert all(selector == template["metadata"]["labels"] for selector in selectors)
    assert {port["targetPort"] for port in one(found, "Service")["spec"]["ports"]} <= ports


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_volumes_are_there(options):
    """Every folder that is mounted is one of the pod's volumes, and the models are where the server looks."""
    spec = one(rendered("kubernetes", options), "Deployment")["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}

    assert set(mounts) == {volume["name"] for volume in spec["volumes"]}
    assert mounts.get("models", options.source) == spec["containers"][0]["args"][1]


def test_an_update_loses_no_server():
    """A new pod is ready before an old one stops; without a spare GPU, the GPU has to be free first."""
    strategies = {
        name: one(rendered("kubernetes", options), "Deployment")["spec"]["strategy"]
        for name, options in OPTIONS.items()
    }

    assert {"maxUnavailable": 0, "maxSurge": 1} == strategies["cpu"]["rollingUpdate"]
    assert strategies["cpu"] == strategies["spare gpu"]
    assert {"type": "Recreate"} == strategies["gpu"]


def test_replicas_belong_to_one_owner():
    """Where a ScaledObject sets the number of pods, the Deployment does not, or an update would reset it."""
    scaled, fixed = rendered("kubernetes", OPTIONS["cpu"]), rendered("kubernetes", OPTIONS["fixed"])

    assert "replicas" not in one(scaled, "Deployment")["spec"]
    assert one(scaled, "ScaledObject")["spec"]["scaleTargetRef"] == {
        "name": one(scaled, "Deployment")["metadata"]["name"]
    }
    assert 1 == one(fixed, "Deployment")["spec"]["replicas"]
    assert {"Deployment", "Service"} == {each["kind"] for each in fixed}


def test_each_model_scales_by_its_batches():
    """One and a half full batches in flight for each replica; at least two requests where nothing is batched."""
    triggers = one(rendered("kubernetes", OPTIONS["cpu"]), "ScaledObject")["spec"]["triggers"]
    twice = one(rendered("kubernetes", OPTIONS["spare gpu"]), "ScaledObject")["spec"]["triggers"]

    assert ["48", "2"] == [each["metadata"]["threshold"] for each in triggers]
    assert ["96", "3"] == [each["metadata"]["threshold"] for each in twice]


def queries() -> list[str]:
    """Return every query that scaling asks of Prometheus."""
    return [
        *(
            trigger["metadata"]["query"]
            for options in OPTIONS.values()
            for each in rendered("kubernetes", options)
            if each["kind"] == "ScaledObject"
            for trigger in each["spec"]["triggers"]
        ),
        *(
            metric["external"]["metric"]["query"]
            for each in rendered("kserve", OPTIONS["keys"])
            if each["kind"] == "InferenceService"
            for metric in each["spec"]["predictor"]["autoScaling"]["metrics"]
        ),
    ]


def test_the_example_fits_the_runtime():
    """The InferenceService names a runtime, a format it supports, and a protocol it speaks."""
    found = rendered("kserve", OPTIONS["gpu"])
    model = next(each for each in found if each["kind"] == "InferenceService")["spec"]["predictor"]["model"]
    runtime = next(each for each in found if each["metadata"]["name"] == model["runtime"])
    formats = [
        {"name": entry["name"], "version": entry["version"]} for entry in runtime["spec"]["supportedModelFormats"]
    ]

    assert model["modelFormat"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_one_runtime_for_each_protocol():
    """KServe routes to one port of a runtime: 8000 for HTTP, 8001 for gRPC."""
    found = [each for each in rendered("kserve", OPTIONS["cpu"]) if each["kind"] == "ServingRuntime"]

    assert {"v2": 8000, "grpc-v2": 8001} == {
        each["spec"]["protocolVersions"][0]: each["spec"]["containers"][0]["ports"][0]["containerPort"]
        for each in found
    }
    assert ["demi"] == [
        each["metadata"]["name"] for each in found if each["spec"]["supportedModelFormats"][0]["autoSelect"]
    ]


def test_services_point_to_their_models():
    """Below the claim, or below the bucket."""
    uris = [
        each["spec"]["predictor"]["model"]["storageUri"]
        for name in ("cpu", "keys")
        for each in rendered("kserve", OPTIONS[name])
        if each["kind"] == "InferenceService"
    ]

    assert ["pvc://demi-models/minilm", "pvc://demi-models/digits"] == uris[:2]
    assert ["s3://models/demi/minilm", "s3://models/demi/digits"] == uris[2:]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server that is ready, from a folder as KServe mounts it."""
    folder = tmp_path_factory.mktemp("deploy") / "models"
    write_bundle(folder / "1", MIXED, golden=GOLDEN_X)
    with serving(folder) as process:
        yield process


def test_the_paths_that_are_probed_answer(served):
    """Every path of a probe answers 200."""
    probes = [
        parameter.values[0][f"{kind}Probe"]["httpGet"]["path"]
        for parameter in containers()
        for kind in ("startup", "liveness", "readiness")
    ]
    codes = {path: httpx.get(served.url + path).status_code for path in probes}

    assert {"/v2/health/live": 200, "/v2/health/ready": 200} == codes


def test_scaling_asks_for_a_metric_that_servers_have(served):
    """With the labels that its query selects by; `namespace` is a label that Prometheus adds."""
    text = httpx.get(served.url + "/metrics").text
    known = {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")}

    for query in queries():
        assert metrics(query) <= known
        assert labels(query)["demi_requests_in_flight"] <= {"model", "namespace"}


def test_the_folder_holds_what_demi_deploy_writes():
    """deploy/kubernetes is generated: `python deploy/kubernetes/write.py`."""
    spec = importlib.util.spec_from_file_location("write", FOLDER / "write.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert module.manifests() == {path.name: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_files_follow_their_schema(path: Path):
    """Each resource of each file, alerts included."""
    for found in yaml.safe_load_all(path.read_text()):
        validate(found)


def test_the_alerts_are_those_of_the_plain_file():
    """The same rules for the Prometheus operator."""
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]

    assert yaml.safe_load((ROOT / "deploy/alerts.yml").read_text()) == rules
