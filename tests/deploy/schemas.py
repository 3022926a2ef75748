"""Validate resources: by Kubernetes' own schemas, KServe's, and those of the operators of custom resources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

Resource = dict[str, Any]

KUBERNETES_VERSION = "1.31"
CUSTOM: dict[str, Any] = {
    kind: schema
    for name in ("kserve.json", "crds.json")
    for kind, schema in json.loads(Path(__file__).with_name(name).read_text()).items()
}


def validate(found: Resource) -> None:
    """Raise where a resource breaks its schema; pods and containers inside custom resources are checked as well."""
    if found["kind"] not in CUSTOM:
        kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True)
        return
    jsonschema.validate(found, CUSTOM[found["kind"]])
    for spec in pods(found):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


def pods(found: Resource) -> list[Resource]:
    """Return the pod specs inside a resource, and its containers as a pod."""
    spec = found["spec"]
    if found["kind"] == "ServingRuntime":
        return [{key: spec[key] for key in ("containers", "volumes", "tolerations") if key in spec}]
    if found["kind"] == "RayService":
        cluster = spec["rayClusterConfig"]
        groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
        return [group["template"]["spec"] for group in groups]
    if found["kind"] == "Deployment":
        return [spec["template"]["spec"]]
    return []
