"""Observe a model: read its inner tensors, a few at a time, and their ranges."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import onnx_ir as ir

from demi.calibration.body_tensors import observe_bodies
from demi.calibration.profile import Range, RangeProfile, range_of
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.calibration.weights import weight_range
from demi.runtime.base import Session
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds

CHUNK_BYTES = 1 << 30
"""Maximum bytes of inner tensors that one run outputs."""
FIRST_RUN = 16
"""Number of tensors that the first run outputs, before any size is known."""
MOST_UNKNOWN = 256
"""Maximum number of tensors of unknown size in a later run."""

_PROBED = (ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.DOUBLE)


def exposed(model: ir.Model, only: AbstractSet[str] | None = None) -> tuple[ir.Model, list[str]]:
    """Return a copy of `model` with its nodes' results (or those in `only`) as graph outputs, and their names.

    Tensors inside the bodies of If, Loop and Scan cannot be outputs of the model; sequences and optionals are omitted.
    """
    copy = model.clone()
    names: list[str] = []
    for node in copy.graph:
        for value in node.outputs:
            if only is not None and value.name not in only:
                continue
            if value.name and isinstance(value.type, ir.TensorType) and value.dtype in _PROBED:
                names.append(value.name)
                if not value.is_graph_output():
                    copy.graph.outputs.append(value)
    return copy, names


class Probe:
    """A session that outputs inner tensors, as many at a time as `chunk_bytes` allows.

    Owns the sizes of the tensors read so far: the first run outputs few tensors, later runs as many as fit.
    """

    def __init__(self, session: Session, names: Sequence[str], chunk_bytes: int = CHUNK_BYTES) -> None:
        self._session = session
        self._chunk_bytes = chunk_bytes
        self.names = list(names)
        self._bytes: dict[str, int] = {}
        self._last = chunk_bytes // FIRST_RUN

    def read(self, feeds: Feeds, names: Sequence[str] | None = None) -> Iterator[Feeds]:
        """Yield the named tensors (all by default) for one set of inputs, in chunks; each chunk is one run."""
        for chunk in self.chunks(names if names is not None else self.names):
            yield self.run(feeds, chunk)

    def run(self, feeds: Feeds, chunk: Sequence[str]) -> Feeds:
        """Return one chunk, in one run, and record the sizes of its tensors."""
        values = self._session.run(feeds, chunk)
        sizes = {name: np.asarray(value).nbytes for name, value in values.items()}
        self._bytes.update(sizes)
        self._last = max([*sizes.values(), self._chunk_bytes // MOST_UNKNOWN])
        return values

    def chunks(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Yield the names in chunks of at most `chunk_bytes`; run each before you take the next.

        A tensor of unknown size is taken to be as large as the largest of the previous run: neighbours are similar.
        """
        left = list(names)
        while left:
            count, size = 0, 0
            for name in left:
                size += self._bytes.get(name, self._last)
                if count and size > self._chunk_bytes:
                    break
                count += 1
            yield left[:count]
            left = left[count:]


@contextlib.contextmanager
def probing(model: ir.Model) -> Iterator[Probe]:
    """Open a Probe on a copy of `model`."""
    copy, names = exposed(model)
    with session_for(copy, settings=FAITHFUL) as session:
        yield Probe(session, names)


def observe(model: ir.Model, samples: Samples) -> RangeProfile:
    """Return the ranges of all float tensors of a prepared FP32 model over all samples: inputs, inner tensors, weights.

    Those in bodies of If, Loop and Scan are there where `body_tensors` can read them.

    Samples and tensors are streamed, so that memory stays bounded whatever their number.
    """
    ranges: dict[str, Range] = {}
    with probing(model) as probe:
        for feeds in samples.feeds:
            for values in (feeds, *probe.read(feeds)):
                for name, array in values.items():
                    if array.dtype.kind == "f" and array.size:  # an empty tensor has no range
                        ranges[name] = ranges.get(name, Range()).merge(range_of(array))
    return RangeProfile(samples.origin, len(samples), ranges | observe_bodies(model, samples) | weight_ranges(model))


def weight_ranges(
    model: ir.Model, known: Mapping[str, Range] | None = None, changed: AbstractSet[str] = frozenset()
) -> dict[str, Range]:
    """Return the ranges of the float32 initializers; those that are `known`, and not `changed`, are not read again."""
    held = known or {}
    return {
        name: held[name] if name in held and name not in changed else weight_range(value.const_value)
        for graph in (model.graph, *model.graph.subgraphs())
        for name, value in graph.initializers.items()
        if value.dtype is ir.DataType.FLOAT and value.const_value is not None
    }
