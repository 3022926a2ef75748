"""JSON schemas of the custom resources that Demi writes, made from their operators' CustomResourceDefinitions.

    python -m tests.deploy.crd_schemas scaledobjects.yaml podmonitors.yaml prometheusrules.yaml rayservices.yaml \
        > tests/deploy/crds.json

The files are in the operators' repositories: KEDA, the Prometheus operator, KubeRay. Only types and names of fields are
kept. An object without declared fields stays open, and so do pod templates, which Kubernetes' own schema checks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

KEPT = ("type", "required", "enum", "minimum", "maximum", "x-kubernetes-int-or-string")
POD_TEMPLATES = {"template", "headService", "serveService"}
"""Fields that hold resources of Kubernetes itself."""


def schema_of(definition: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the kind of a definition, and its schema in the version that is stored."""
    (version,) = (each for each in definition["spec"]["versions"] if each["storage"])
    schema = closed(version["schema"]["openAPIV3Schema"])
    group = definition["spec"]["group"]
    schema["properties"] |= {"apiVersion": {"const": f"{group}/{version['name']}"}, "metadata": {"type": "object"}}
    return definition["spec"]["names"]["kind"], schema


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without descriptions that refuses fields it does not declare."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        kept["properties"] = {
            name: {"type": "object"} if name in POD_TEMPLATES else closed(each)
            for name, each in schema["properties"].items()
        }
        kept["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        kept["items"] = closed(schema["items"])
    return kept


if __name__ == "__main__":
    definitions = [yaml.safe_load(Path(path).read_text()) for path in sys.argv[1:]]
    print(json.dumps(dict(map(schema_of, definitions)), separators=(",", ":"), sort_keys=True))
