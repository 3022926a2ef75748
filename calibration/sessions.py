"""A session for a graph in memory, whatever its size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir

from demi.bundles.drafts import scratch
from demi.calibration.random_draws import with_fixed_draws
from demi.calibration.weights import unmapped
from demi.runtime.base import CPU, Device
from demi.runtime.onnxruntime.session import OrtSession, SessionSettings, open_session

Opener = Callable[[Path | bytes, Device, SessionSettings | None], OrtSession]

PROTOBUF_LIMIT = 2**31 - 2**24
"""A little below the 2 GiB that one protobuf message may hold."""


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, subgraphs included."""
    graphs = (model.graph, *model.graph.subgraphs())
    return sum(v.const_value.nbytes for g in graphs for v in g.initializers.values() if v.const_value is not None)


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model; weights go to `PATH.data` beside it when one protobuf cannot hold them. `model` is unchanged.

    Weights that lie in other files are streamed, one at a time.
    """
    external = f"{path.name}.data" if weight_bytes(model) > PROTOBUF_LIMIT else None
    with _streamed(model):
        ir.save(model, path, external_data=external)


@contextlib.contextmanager
def _streamed(model: ir.Model) -> Iterator[None]:
    """While the block runs, weights that lie in other files are read when they are written, and forgotten after."""
    values = [v for g in (model.graph, *model.graph.subgraphs()) for v in g.initializers.values()]
    tensors = [value.const_value for value in values]
    try:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = unmapped(tensor) if tensor is not None else None
        yield
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


@contextlib.contextmanager
def session_for(
    model: ir.Model, device: Device = CPU, settings: SessionSettings | None = None, opener: Opener = open_session
) -> Iterator[OrtSession]:
    """A session for `model`, through memory when it fits one protobuf, else through a temporary folder.

    One that measures (`faithful`) draws the same random numbers in every run (`demi.calibration.random_draws`).
    """
    if settings is not None and settings.faithful:
        model = with_fixed_draws(model)
    if weight_bytes(model) <= PROTOBUF_LIMIT:
        with _streamed(model):
            serialized = ir.to_proto(model).SerializeToString()
        yield opener(serialized, device, settings)
        return
    with scratch() as folder:
        path = folder / "model.onnx"
        save_model(model, path)
        yield opener(path, device, settings)
