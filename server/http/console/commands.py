"""Commands that a person can copy: the same request for curl, for Python and for Triton's client."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass

from demi.server.models.model import Model
from demi.tensors import DType, TensorSpec

INLINE = 32
"""Elements. The examples generate larger inputs with code instead of listing the zeros."""

KEY = "$DEMI_API_KEY"
"""Variable of the shell that holds the key; the page never shows a key."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command, under the name of the tool that it is for."""

    tool: str
    language: str
    text: str


def commands(model: Model, base_url: str, *, needs_key: bool = False) -> list[Command]:
    """Return the commands that send zeros to a ready model: its inputs with one element along free axes."""
    return [
        Command("curl", "sh", curl(model, base_url, needs_key=needs_key)),
        Command("Python", "python", python(model, base_url, needs_key=needs_key)),
        Command("tritonclient", "python", tritonclient(model, base_url, needs_key=needs_key)),
    ]


def curl(model: Model, base_url: str, *, needs_key: bool = False) -> str:
    """Return a shell command that sends zeros to a model."""
    inputs = [(_head(spec), _zeros(spec)) for spec in model.signature.inputs]
    url = shlex.quote(_url(model, base_url))
    key = f' -H "Authorization: Bearer {KEY}"' if needs_key else ""
    if all(len(data) <= INLINE for _, data in inputs):
        body = json.dumps({"inputs": [{**head, "data": data} for head, data in inputs]})
        return f"curl {url}{key} -d {shlex.quote(body)}"
    written = ", ".join(f"{{**{head!r}, 'data': [{data[0]!r}] * {len(data)}}}" for head, data in inputs if data)
    script = f"import json; print(json.dumps({{'inputs': [{written}]}}))"
    return f"python3 -c {shlex.quote(script)} \\\n  | curl {url}{key} --data-binary @-"


def python(model: Model, base_url: str, *, needs_key: bool = False) -> str:
    """Return a Python program that needs nothing but Python."""
    inputs = [
        f"    {{**{_head(spec)!r}, 'data': [{zero!r}] * {count}}},"
        for spec in model.signature.inputs
        for zero, count in [_fill(spec)]
    ]
    imports = ["import json", *(["import os"] if needs_key else []), "from urllib.request import Request, urlopen"]
    headers = "{'Authorization': 'Bearer ' + os.environ['DEMI_API_KEY']}" if needs_key else "{}"
    return "\n".join(
        [
            *imports,
            "",
            "inputs = [",
            *inputs,
            "]",
            f"request = Request({_url(model, base_url)!r}, json.dumps({{'inputs': inputs}}).encode(), {headers})",
            "for output in json.load(urlopen(request))['outputs']:",
            "    print(output['name'], output['shape'], output['data'][:10])",
        ]
    )


def tritonclient(model: Model, base_url: str, *, needs_key: bool = False) -> str:
    """Return a Python program for `tritonclient[http]`."""
    scheme, _, address = base_url.rstrip("/").partition("://")
    tls = ", ssl=True" if scheme == "https" else ""
    lines = [*(["import os", ""] if needs_key else []), "import numpy as np", "import tritonclient.http as triton", ""]
    lines += [f"client = triton.InferenceServerClient({address!r}{tls})", "inputs = []"]
    for spec in model.signature.inputs:
        shape, kind = _shape(spec), spec.dtype.value
        lines.append(f"inputs.append(triton.InferInput({spec.name!r}, {shape!r}, {kind!r}))")
        lines.append(f"inputs[-1].set_data_from_numpy({_array(spec)})")
    headers = ", headers={'Authorization': 'Bearer ' + os.environ['DEMI_API_KEY']}" if needs_key else ""
    lines.append(f"answer = client.infer({model.name!r}, inputs, model_version={model.version!r}{headers})")
    lines += [f"print({spec.name!r}, answer.as_numpy({spec.name!r}))" for spec in model.signature.outputs]
    return "\n".join(lines)


def _url(model: Model, base_url: str) -> str:
    return f"{base_url.rstrip('/')}/v2/models/{model.name}/versions/{model.version}/infer"


def _shape(spec: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else 1 for dim in spec.shape]


def _head(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "shape": _shape(spec), "datatype": spec.dtype.value}


def _fill(spec: TensorSpec) -> tuple[object, int]:
    zero: object = "" if spec.dtype is DType.BYTES else False if spec.dtype is DType.BOOL else 0
    return zero, math.prod(_shape(spec))


def _zeros(spec: TensorSpec) -> list[object]:
    zero, count = _fill(spec)
    return [zero] * count


def _array(spec: TensorSpec) -> str:
    """Return the NumPy expression of an input of zeros; tritonclient takes BF16 as float32."""
    shape = _shape(spec)
    if spec.dtype is DType.BYTES:
        return f"np.full({shape!r}, b'', dtype=object)"
    kind = "float32" if spec.dtype is DType.BF16 else spec.dtype.numpy.name
    return f"np.zeros({shape!r}, np.{'bool_' if kind == 'bool' else kind})"
