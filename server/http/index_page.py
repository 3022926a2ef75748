"""The HTML page at `/`, for people who open the server's address in a browser."""

from __future__ import annotations

import html
import json
import math
import shlex

from demi.server.models.model import Model, State
from demi.server.models.repository import Repository
from demi.tensors import DType, TensorSpec
from demi.version import __version__

_INLINE = 32
"""Elements. The example generates larger inputs with Python instead of listing the zeros."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Demi</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ background: #8882; padding: .75rem; overflow-x: auto; }}
td, th {{ text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top; }}
:root {{ color-scheme: light dark; }}
</style>
</head>
<body>
<h1>Demi {version}</h1>
<p>Models over the KServe v2 / Open Inference Protocol.
<a href="/docs">API documentation</a> · <a href="/v2">metadata</a> · <a href="/v2/health/ready">readiness</a></p>
{models}
</body>
</html>
"""


def render_page(repository: Repository, base_url: str) -> str:
    """Render the page: each model version with its tensors, precision and an example request."""
    sections = [_section(model, base_url) for model in repository]
    return _PAGE.format(version=html.escape(__version__), models="\n".join(sections))


def curl_example(model: Model, base_url: str) -> str:
    """Return a shell command that sends zeros to a model."""
    inputs = [_example_input(spec) for spec in model.signature.inputs]
    url = f"{base_url.rstrip('/')}/v2/models/{model.name}/versions/{model.version}/infer"
    if all(len(data) <= _INLINE for _, data in inputs):
        body = json.dumps({"inputs": [{**head, "data": data} for head, data in inputs]})
        return f"curl {shlex.quote(url)} -d {shlex.quote(body)}"
    written = ", ".join(f"{{**{head!r}, 'data': [{data[0]!r}] * {len(data)}}}" for head, data in inputs if data)
    script = f"import json; print(json.dumps({{'inputs': [{written}]}}))"
    return f"python3 -c {shlex.quote(script)} | curl {shlex.quote(url)} --data-binary @-"


def _section(model: Model, base_url: str) -> str:
    title = f"<h2>{html.escape(model.name)} <small>version {html.escape(model.version)}</small></h2>"
    if model.state is not State.READY:
        return f"{title}\n<p>Not ready: {html.escape(model.reason)}</p>"
    signature = model.signature
    rows = [("precision", model.loaded.precision), ("device", str(model.loaded.session.device))]
    rows += [("runtime", model.loaded.runtime), ("batching", signature.batching)]
    rows += [("note", model.note)] if model.note else []
    rows += [("input", str(spec)) for spec in signature.inputs] + [("output", str(spec)) for spec in signature.outputs]
    table = "\n".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    example = html.escape(curl_example(model, base_url))
    return f"{title}\n<table>{table}</table>\n<pre>{example}</pre>"


def _example_input(spec: TensorSpec) -> tuple[dict[str, object], list[object]]:
    shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
    zero: object = "" if spec.dtype is DType.BYTES else False if spec.dtype is DType.BOOL else 0
    return {"name": spec.name, "shape": shape, "datatype": spec.dtype.value}, [zero] * math.prod(shape)
