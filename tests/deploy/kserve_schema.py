"""JSON schemas of KServe's resources, made from the models that its Python package is generated with.

    python -m tests.deploy.kserve_schema /path/to/site-packages/kserve > tests/deploy/kserve.json

The package itself is heavy, and its models import all of it; so they are read as text. What is not in CLOSED stays open
here: containers are checked against Kubernetes' own schemas, and the rest our resources do not use.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
CLOSED = set(
    """
    V1alpha1ServingRuntime V1alpha1ServingRuntimeSpec V1alpha1SupportedModelFormat
    V1beta1InferenceService V1beta1InferenceServiceSpec V1beta1PredictorSpec V1beta1ModelSpec V1beta1ModelFormat
    V1beta1AutoScalingSpec V1beta1MetricsSpec V1beta1ExternalMetricSource V1beta1ExternalMetrics V1beta1MetricTarget
    """.split()
)
PRIMITIVES = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}


def schema_of(package: Path, kind: str) -> dict[str, Any]:
    """The schema of one kind, with the definitions it needs."""
    definitions: dict[str, Any] = {}
    _define(package, KINDS[kind], definitions)
    return {"$ref": f"#/definitions/{KINDS[kind]}", "definitions": definitions}


def _define(package: Path, name: str, definitions: dict[str, Any]) -> None:
    """Add a model and those its fields hold."""
    if name in definitions:
        return
    text = (package / "models" / f"{_file_name(name)}.py").read_text()
    types, names = (
        ast.literal_eval(re.search(rf"{table} = (\{{.*?\}})", text, re.DOTALL)[1])  # type: ignore[index]
        for table in ("openapi_types", "attribute_map")
    )
    required = sorted(names[field] for field in re.findall(r"client_side_validation and (\w+) is None", text))
    definitions[name] = {"type": "object", "additionalProperties": False, "properties": {}, "required": required}
    for field, kind in types.items():
        definitions[name]["properties"][names[field]] = _schema(package, kind, definitions)


def _schema(package: Path, kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind in PRIMITIVES:
        return {"type": PRIMITIVES[kind]}
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        return {"type": "array", "items": _schema(package, match[1], definitions)}
    if match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return {"type": "object", "additionalProperties": _schema(package, match[1], definitions)}
    if kind not in CLOSED:
        return {} if kind in ("object", "datetime", "V1beta1MetricQuantity") else {"type": "object"}
    _define(package, kind, definitions)
    return {"$ref": f"#/definitions/{kind}"}


def _file_name(model: str) -> str:
    """`V1alpha1SupportedModelFormat` is in `v1alpha1_supported_model_format`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", model).lower()


if __name__ == "__main__":
    print(json.dumps({kind: schema_of(Path(sys.argv[1]), kind) for kind in KINDS}, indent=2))
