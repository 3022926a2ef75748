"""Example requests for `/docs`: the first golden input of each model, if it is small, else zeros."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from demi.bundles.bundle import open_bundle
from demi.bundles.manifest import GOLDEN
from demi.errors import DemiError
from demi.server.models.model import Model, State
from demi.server.protocol.float_widths import to_readable
from demi.tensors import DType, Feeds, TensorSpec

MOST_MODELS = 5
"""Models with an example; more would make the page slow."""
MOST_ELEMENTS = 64
"""Elements of all inputs of an example together; a model with larger inputs has none."""
MOST_BYTES = 1 << 18
"""Golden inputs in a larger file are not read."""


def example_bodies(models: Iterable[Model]) -> dict[str, Any]:
    """Return the JSON body of an infer request for a few models by name, each the newest version that is ready."""
    ready = {model.name: model for model in models if model.state is State.READY}
    bodies = {name: example_body(model) for name, model in ready.items()}
    return dict([(name, body) for name, body in bodies.items() if body][:MOST_MODELS])


def example_body(model: Model) -> dict[str, Any] | None:
    """Return the body of a request that a ready model answers; None if its inputs are large."""
    specs = model.signature.inputs
    feeds = _golden(model) or {spec.name: _zeros(spec) for spec in specs if math.prod(_shape(spec)) <= MOST_ELEMENTS}
    if len(feeds) < len(specs) or sum(array.size for array in feeds.values()) > MOST_ELEMENTS:
        return None
    return {"inputs": [_entry(spec, feeds) for spec in specs]}


def _entry(spec: TensorSpec, feeds: Feeds) -> dict[str, Any]:
    array = feeds[spec.name]
    data = (array if spec.dtype is DType.BYTES else to_readable(array, spec.dtype)).ravel().tolist()
    shown = [str(item) if spec.dtype is DType.BYTES else item for item in data]
    return {"name": spec.name, "shape": list(array.shape), "datatype": spec.dtype.value, "data": shown}


def _golden(model: Model) -> Feeds | None:
    """Return the first golden input; None without one that is small, finite and of the model's inputs."""
    if model.path is None:
        return None
    try:
        bundle = open_bundle(model.path, verify=False)
        if not bundle.has_golden or bundle.manifest.files[GOLDEN].bytes > MOST_BYTES:
            return None
        feeds = bundle.golden().inputs[0]
    except (DemiError, OSError, IndexError):
        return None
    usable = all(array.dtype.kind != "f" or np.isfinite(array).all() for array in feeds.values())
    return feeds if usable and set(feeds) == {spec.name for spec in model.signature.inputs} else None


def _zeros(spec: TensorSpec) -> Any:
    return np.full(_shape(spec), "" if spec.dtype is DType.BYTES else 0, spec.dtype.numpy)


def _shape(spec: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else 1 for dim in spec.shape]
