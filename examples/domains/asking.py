"""Questions over HTTP, as `curl` would ask them, with nothing but the standard library."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def ask_file(address: str, model: str, path: Path) -> dict[str, np.ndarray]:
    """Post an image or a sound as it is, and return the answers by name."""
    print(f"\n$ curl --data-binary @{path} http://{address}/v2/models/{model}/infer", flush=True)
    return _infer(address, model, path.read_bytes())


def ask_texts(address: str, model: str, texts: Sequence[str], outputs: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Post texts, and return the answers, or the outputs that are named, one row for each text."""
    body: dict[str, Any] = {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}],
        "parameters": {"truncate": True},
    }
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    return ask_json(address, model, body)


def ask_json(address: str, model: str, body: dict[str, Any]) -> dict[str, np.ndarray]:
    """Post a JSON request, and return the answers by name."""
    text = json.dumps(body)
    short = text if len(text) < 200 else f"{text[:200]}..."
    print(f"\n$ curl -d '{short}' http://{address}/v2/models/{model}/infer", flush=True)
    return _infer(address, model, text.encode())


def _infer(address: str, model: str, body: bytes) -> dict[str, np.ndarray]:
    """Return the outputs of one request. Raises urllib's HTTPError for a refused one."""
    request = urllib.request.Request(f"http://{address}/v2/models/{model}/infer", body, method="POST")
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)["outputs"]
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in found}
