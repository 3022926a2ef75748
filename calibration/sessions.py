"""Sessions for graphs in memory, of any size."""

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
"""Bytes, slightly below the 2 GiB that one protobuf message may hold."""


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers, including those of subgraphs."""
    graphs = (model.graph, *model.graph.subgraphs())
    return sum(v.const_value.nbytes for g in graphs for v in g.initializers.values() if v.const_value is not None)


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model; weights that do not fit into one protobuf go to `PATH.data` beside it. `model` is unchanged.

    External weights are streamed, one at a time.
    """
    external = f"{path.name}.data" if weight_bytes(model) > PROTOBUF_LIMIT else None
    with _streamed(model):
        ir.save(model, path, external_data=external)


@contextlib.contextmanager
def _streamed(model: ir.Model) -> Iterator[None]:
    """During the block, read external weights only when they are written, and do not keep them."""
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
    """Open a session for `model`, through memory if it fits into one protobuf, else through a temporary folder.

    With `faithful` settings, random numbers are the same in every run (`demi.calibration.random_draws`).
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
