"""Bundles for the measurements, and requests to them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import orjson

from bench.scale.cluster import HTTP_PORT
from bench.scale.load import http_request
from tests.server.bundles import write_bundle

FEATURES = 784

MLP = f"""mlp (float[batch, {FEATURES}] x) => (float[batch, 10] y)
<float[{FEATURES}, 256] first, float[256, 10] second>
{{ hidden = MatMul(x, first)
  active = Relu(hidden)
  y = MatMul(active, second) }}"""
"""A small classifier; a request has 3 KB."""


def write_models(folder: Path) -> Path:
    """Write the bundles, and return their folder."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=shape, scale=0.05) for shape in ((FEATURES, 256), (256, 10)))
    text = MLP.replace("] first,", f"] first = {_values(first)},").replace(
        "] second>", f"] second = {_values(second)}>"
    )
    write_bundle(folder / "mlp" / "1", text)
    return folder


def mlp_request(prefix: str = "") -> bytes:
    """Return an infer request with one row as bytes."""
    data = np.random.default_rng(1).normal(size=FEATURES).astype(np.float32).tobytes()
    tensor = {
        "name": "x",
        "shape": [1, FEATURES],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = f"inference-header-content-length: {len(head)}\r\ncontent-type: application/octet-stream\r\n"
    return http_request(f"{prefix}/v2/models/mlp/infer", head + data, HTTP_PORT, headers)


def _values(array: np.ndarray) -> str:
    rounded = array.astype(np.float32).ravel().tolist()
    return "{" + ", ".join(repr(struct.unpack("f", struct.pack("f", value))[0]) for value in rounded) + "}"
