"""OpenAPI documentation of the infer paths, written by hand since FastAPI does not handle them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PARAMETERS = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean")]},
}

_PLACE = "`shared_memory_region`, `shared_memory_byte_size` and `shared_memory_offset`: a place in shared memory"

_INPUT = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "examples": ["FP32", "FP16", "INT64", "BYTES"]},
        "data": {"description": "The elements, nested or flat; absent if they follow as bytes (`binary_data_size`)"},
        "parameters": {
            **_PARAMETERS,
            "description": f"`binary_data_size`: bytes of this input after the JSON; or {_PLACE}",
        },
    },
}

_OUTPUT_WANTED = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "parameters": {
            **_PARAMETERS,
            "description": "`binary_data`: as bytes after the JSON; `classification`: only the k largest elements; "
            f"or {_PLACE}",
        },
    },
}

_OUTPUT = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "data": {"description": "The elements, flat; absent where they follow as bytes"},
    },
}

SCHEMAS: dict[str, Any] = {
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "description": "Returned in the answer"},
            "inputs": {"type": "array", "items": _INPUT},
            "outputs": {"type": "array", "items": _OUTPUT_WANTED, "description": "All outputs if absent"},
            "parameters": {
                **_PARAMETERS,
                "description": "`timeout`: deadline of this request in microseconds; `binary_data_output`: return outputs as bytes",
            },
        },
        "examples": [{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}],
    },
    "InferAnswer": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "outputs": {"type": "array", "items": _OUTPUT},
        },
    },
}

_ERRORS = {
    "400": "The request does not match the model or the protocol; the message names the tensor",
    "404": "No such model or version",
    "413": "The body is larger than the server's limit",
    "415": "The content encoding is neither gzip nor deflate",
    "500": "The model failed; the server's log has the details under the request id in the message",
    "503": "Not ready, shutting down, or the queue is full; see Retry-After",
    "504": "The deadline of the request has passed",
}


def json_body(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return the documentation of a JSON body that a route reads itself: an object with these properties. The body is
    optional if no property is required."""
    schema = {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}
    return {"requestBody": {"required": bool(required), "content": {"application/json": {"schema": schema}}}}


def form_body(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return the documentation of a form with files that a route reads itself."""
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def add_keys(document: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document with API key authentication; `/docs` then offers a form for the key."""
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}}
    components = {**document.get("components", {}), "securitySchemes": schemes}
    return {**document, "components": components, "security": [{"bearer": []}]}


TAGS = {
    "inference": "Run a model",
    "generation": "Texts generated token by token",
    "openai": "Embeddings, completions and transcriptions for OpenAI's clients",
    "text-embeddings-inference": "Embeddings, ranking and classification for clients of text-embeddings-inference",
    "models": "Metadata, loading and unloading",
    "versions": "Versions side by side: canary, promotion, rollback, aliases",
    "accuracy": "The live accuracy of half precision",
    "statistics": "Counts and times",
    "health": "Liveness and readiness",
    "one version": "The same for one version of a model",
    "settings": "Trace and log settings",
    "shared memory": "Tensors in shared memory",
}
"""Sections of `/docs`, in the order in which people need them."""

ONE_VERSION = "/versions/{version}"


def in_order(document: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document with its sections in the order of `TAGS`, and paths with a version in their own."""
    paths = {
        path: {
            method: {**operation, "tags": ["one version"] if ONE_VERSION in path else operation.get("tags", [])}
            for method, operation in operations.items()
        }
        for path, operations in document["paths"].items()
    }
    tags = [{"name": name, "description": text} for name, text in TAGS.items()]
    return {**document, "paths": paths, "tags": tags}


def with_examples(document: dict[str, Any], bodies: Mapping[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document with an example body for each of these models, by name, at the infer paths."""
    if not bodies:
        return document
    examples = {name: {"summary": name, "value": body} for name, body in bodies.items()}
    paths = {
        path: {method: _with(operation, examples) for method, operation in operations.items()}
        if path.endswith("/infer")
        else operations
        for path, operations in document["paths"].items()
    }
    return {**document, "paths": paths}


def _with(operation: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    body = operation["requestBody"]
    json = {**body["content"]["application/json"], "examples": examples}
    return {**operation, "requestBody": {**body, "content": {**body["content"], "application/json": json}}}


def add_infer(document: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document with the two infer paths added."""
    model = _path_parameter("model", "The model's name")
    version = _path_parameter("version", "The model's version")
    paths = {
        "/v2/models/{model}/infer": {"post": _operation("infer", [model])},
        "/v2/models/{model}/versions/{version}/infer": {"post": _operation("infer_version", [model, version])},
    }
    components = document.get("components", {})
    schemas = {**components.get("schemas", {}), **SCHEMAS}
    return {**document, "paths": {**document["paths"], **paths}, "components": {**components, "schemas": schemas}}


def _operation(name: str, path_parameters: list[dict[str, Any]]) -> dict[str, Any]:
    header = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 0},
        "description": "Length in bytes of the JSON at the start of the body, if tensors follow it; 0 if the whole body "
        "is the one input",
    }
    return {
        "tags": ["inference"],
        "operationId": name,
        "summary": "Infer",
        "description": "Run a model. The content type is ignored; gzip and deflate are supported for requests and answers.",
        "parameters": [*path_parameters, header],
        "requestBody": {"required": True, "content": _content("InferRequest")},
        "responses": {
            "200": {"description": "The outputs", "content": _content("InferAnswer")},
            **{status: _error(text) for status, text in _ERRORS.items()},
        },
    }


def _content(schema: str) -> dict[str, Any]:
    return {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }


def _error(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _path_parameter(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": text}
