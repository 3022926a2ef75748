"""Sessions, messages and signatures for tests without a model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson

from demi.bundles.manifest import BatchProof, BatchSpec
from demi.runtime.base import CPU, Device
from demi.server.models.loading import Loaded
from demi.server.protocol.signature import Signature
from demi.tensors import DType, Feeds, TensorSpec, parse_spec

ROW = parse_spec("x:fp32[batch,3]")
RESULT = parse_spec("y:fp32[batch,3]")
PROOF = BatchProof(sizes=(1, 2, 3, 8), rows=5, runs=12, difference=0.0)
"""The proof of batching that a bundle would contain."""


def signature_of(*inputs: str, outputs: Sequence[str] = ("y:fp32[batch,3]",), rows: int = 0) -> Signature:
    """Make a signature from specs as text; with `rows`, axis 0 is a batch of at most that many."""
    batch = BatchSpec(free=rows > 0, max_size=rows or 32)
    return Signature(tuple(map(parse_spec, inputs)), tuple(map(parse_spec, outputs)), batch)


@dataclass
class DoublingSession:
    """Doubles its input `x` into `y`; waits for `gate` before each run, and raises `error` if set."""

    error: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    runs: list[Feeds] = field(default_factory=list)
    inputs: tuple[TensorSpec, ...] = (ROW,)
    outputs: tuple[TensorSpec, ...] = (RESULT,)
    device: Device = CPU

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        self.started.set()
        self.gate.wait(10)
        self.runs.append(feeds)
        if self.error:
            raise self.error
        result = {"y": feeds["x"] * np.float32(2)}
        return {name: result[name] for name in outputs or result}


def open_fake(error: Exception | None = None) -> DoublingSession:
    """Return a DoublingSession that does not wait."""
    session = DoublingSession(error)
    session.gate.set()
    return session


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for a condition, with the event loop running."""
    stop = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < stop, "the condition did not come true"
        await asyncio.sleep(0.001)


def loaded(session: DoublingSession) -> Loaded:
    """Return what a model is started with."""
    return Loaded((session,), Signature(session.inputs, session.outputs, BatchSpec(free=True, max_size=8)), "fp16")


def message(data: object, *, shape: Sequence[int], datatype: str = "FP32", name: str = "x", **members: object) -> bytes:
    """Return a JSON infer request with one input."""
    entry = {"name": name, "shape": list(shape), "datatype": datatype, "data": data}
    return orjson.dumps({"inputs": [entry], **members})


def binary_message(
    *tensors: tuple[str, DType, Sequence[int], bytes], sizes: Sequence[int] | None = None, **members: object
) -> tuple[bytes, str]:
    """Return an infer request with binary inputs, and the value of its header-length header."""
    sizes = sizes if sizes is not None else [len(data) for *_, data in tensors]
    inputs = [
        {"name": name, "shape": list(shape), "datatype": dtype.value, "parameters": {"binary_data_size": size}}
        for (name, dtype, shape, _), size in zip(tensors, sizes, strict=True)
    ]
    head = orjson.dumps({"inputs": inputs, **members})
    return head + b"".join(data for *_, data in tensors), str(len(head))
