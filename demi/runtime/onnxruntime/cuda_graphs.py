"""CUDA graphs for ONNX Runtime: one graph for each bucket of batch sizes, replayed with one launch.

A small model on a fast GPU spends its time launching kernels one by one. A CUDA graph launches all of them at once, for
fixed shapes and addresses. Batches are therefore filled up to a power of two, and every bucket has two sets of buffers,
so that one batch can be copied in while another runs.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from demi.runtime.base import Ready
from demi.runtime.cuda.bindings import Cuda
from demi.runtime.cuda.buffers import Lane, Lease, Pool, Result
from demi.runtime.cuda.capture_lock import CAPTURE_LOCK
from demi.runtime.onnxruntime.binding import AHEAD, NO_GRAPH, Bindable, Binder, can_bind
from demi.tensors import Array, Feeds, TensorSpec, check_feeds


def can_replay(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Return whether all shapes depend on the number of rows only: one free axis 0 everywhere, all others fixed."""
    first = {spec.shape[0] if spec.shape else None for spec in (*inputs, *outputs)}
    rest = [dim for spec in (*inputs, *outputs) for dim in spec.shape[1:]]
    fixed = all(isinstance(dim, int) for dim in rest)
    return len(first) == 1 and isinstance(first.pop(), str) and fixed and can_bind((*inputs, *outputs))


def bucket_of(rows: int, most: int) -> int | None:
    """Return the rows that a batch is filled up to: the next power of two, at most `most`; None for larger batches."""
    return min(1 << max(0, rows - 1).bit_length(), most) if 0 < rows <= most else None


def as_rows(array: Array, rows: int) -> Array:
    """Pad the array to `rows` rows by repeating its last row, since other values could become NaN in the model."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if len(array) < rows else array


class GraphBinder:
    """Replays a captured graph for every bucket up to `most` rows; larger batches run without. Owns the graphs.

    ONNX Runtime allows only one run at a time for a session that captures graphs, which a lock ensures here.
    """

    def __init__(self, bindable: Bindable, cuda: Cuda, most: int) -> None:
        self.cuda = cuda
        self._bindable = bindable
        self._most = most
        self._plain = Binder(bindable, cuda)
        self._names = [spec.name for spec in bindable.outputs]
        self._ids = itertools.count(1)
        self._pools: dict[int, Pool[_CapturedGraph]] = {}
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def stage(self, feeds: Feeds) -> Ready:
        """Copy the inputs, filled up to their bucket, to the buffers of its graph, and return the run."""
        feeds = check_feeds(self._bindable.inputs, feeds)
        rows = len(next(iter(feeds.values())))
        bucket = bucket_of(rows, self._most)
        if bucket is None:
            ready = self._plain.stage(feeds)
            return functools.partial(self._alone, ready)
        lease = Lease(self._pool(bucket))
        with lease as captured:
            captured.send({name: as_rows(array, bucket) for name, array in feeds.items()})

        def run(outputs: Sequence[str] | None = None) -> Feeds:
            try:
                with self._turn:
                    answers = lease.item.replay()
            finally:
                lease.end()
            return {name: answers[name][:rows] for name in (outputs if outputs is not None else self._names)}

        return run

    def _alone(self, ready: Ready, outputs: Sequence[str] | None = None) -> Feeds:
        with self._turn:
            return ready(outputs)

    def _pool(self, bucket: int) -> Pool[_CapturedGraph]:
        with self._lock:
            if bucket not in self._pools:
                # A reference to `self` would make a cycle, and delay freeing device memory.
                make = functools.partial(_CapturedGraph, self._bindable, self.cuda, self._ids)
                self._pools[bucket] = Pool(make, AHEAD)
            return self._pools[bucket]


class _CapturedGraph:
    """One graph: its id, and the buffers that it reads and writes.

    ONNX Runtime keeps graphs by thread: every thread that runs a graph captures it once.
    """

    def __init__(self, bindable: Bindable, cuda: Cuda, ids: Iterator[int]) -> None:
        self._bindable = bindable
        self._id = str(next(ids))
        self._lane = Lane(cuda)
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._binding: Any = None
        self._results: dict[str, Result] = {}
        self._thread = threading.local()

    def send(self, feeds: Feeds) -> None:
        """Copy the inputs to the buffers that the graph reads; their shapes never change."""
        self._addresses = {name: self._lane.send(name, array) for name, array in feeds.items()}
        self._shapes = {name: array.shape for name, array in feeds.items()}
        self._lane.wait()

    def replay(self) -> Feeds:
        """Run and return the outputs. A thread's first run, unless sessions are being changed, captures the graph."""
        if getattr(self._thread, "has_captured", False):
            self._bindable.run(self._binding, self._id)
        else:
            with CAPTURE_LOCK.capturing() as may_capture:
                self._bindable.run(self._bound(), self._id if may_capture else NO_GRAPH)
            self._thread.has_captured = may_capture
        return self._lane.fetch(self._results)

    def close(self) -> None:
        """Free the buffers."""
        self._binding = None
        self._lane.close()

    def _bound(self) -> Any:
        """Return the binding for all runs, created once, since the addresses in a graph are fixed."""
        if self._binding is None:
            results = self._place_outputs()
            binding = self._bindable.new_binding(self._addresses, self._shapes)
            for spec in self._bindable.outputs:
                result, place = results[spec.name], self._bindable.place
                binding.bind_output(spec.name, *place, spec.dtype.onnx, result.shape, result.address)
            self._results, self._binding = results, binding
        return self._binding

    def _place_outputs(self) -> dict[str, Result]:
        """Reserve a buffer for every output, with the shape that a run without a graph returns."""
        names = [spec.name for spec in self._bindable.outputs]
        binding = self._bindable.new_binding(self._addresses, self._shapes)
        for name in names:
            binding.bind_output(name, *self._bindable.place)
        self._bindable.run(binding)
        return {
            name: Result(self._lane.reserve(f"{name} (fixed)", found.nbytes), found.shape, found.dtype)
            for name, found in self._bindable.results(binding, names).items()
        }
