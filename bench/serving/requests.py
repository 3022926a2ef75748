"""Infer requests as bytes on the wire."""

from __future__ import annotations

import numpy as np
import orjson

from demi.bundles.bundle import Bundle
from demi.server.grpc.messages import messages
from demi.server.protocol.binary_tensors import write_binary
from demi.server.protocol.json_tensors import write_json
from demi.tensors import Feeds


def first_row(bundle: Bundle) -> Feeds:
    """Return the first row of the bundle's golden inputs."""
    golden = bundle.golden().inputs[0]
    return {name: np.ascontiguousarray(values[:1]) for name, values in golden.items()}


def http_request(bundle: Bundle, row: Feeds, *, binary: bool) -> bytes:
    """Return an infer request over HTTP, with its tensors as JSON or binary."""
    specs = {spec.name: spec for spec in bundle.manifest.inputs}
    tail: list[bytes] = []
    inputs = []
    for name, values in row.items():
        entry: dict[str, object] = {"name": name, "shape": values.shape, "datatype": specs[name].dtype.value}
        if binary:
            tail.append(write_binary(values, specs[name].dtype))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = write_json(values, specs[name].dtype, name, refuse_non_finite=True)
        inputs.append(entry)
    message: dict[str, object] = {"inputs": inputs}
    if binary:
        message["parameters"] = {"binary_data_output": True}
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    length = f"Inference-Header-Content-Length: {len(head)}\r\n" if binary else ""
    return post(f"/v2/models/{bundle.manifest.name}/infer", head + b"".join(tail), length)


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """Return a POST request with this body."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def grpc_request(bundle: Bundle, row: Feeds) -> bytes:
    """Return a serialized `ModelInferRequest` with raw contents."""
    specs = {spec.name: spec for spec in bundle.manifest.inputs}
    message = messages("inference.proto")["ModelInferRequest"](model_name=bundle.manifest.name)
    for name, values in row.items():
        message.inputs.add(name=name, datatype=specs[name].dtype.value, shape=values.shape)
        message.raw_input_contents.append(write_binary(values, specs[name].dtype))
    data: bytes = message.SerializeToString()
    return data
