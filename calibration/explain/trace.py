"""Trace an error through a half model: for every node, the error that enters, that it adds and that leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.tensor_errors import tensor_error
from demi.calibration.emulation.widen import HALF_TYPES
from demi.calibration.explain.twins import UPTO, Pair, Twins
from demi.calibration.observe import CHUNK_BYTES, Probe, exposed
from demi.calibration.sessions import session_for
from demi.float16 import HalfFormat, round_through
from demi.runtime.base import Session
from demi.runtime.options import FAITHFUL
from demi.tensors import Array, Feeds, TensorSpec

MASKED = -1e4
"""In a plan with clamped masks, an element below this in both models stands for minus infinity."""

COPIES = 3
"""Copies of each tensor that are read at once: the reference, the half model, and the half model with exact inputs."""


@dataclass(frozen=True, slots=True)
class TensorTrace:
    """Errors of one tensor of the half model against the reference, the worst over all sets of inputs."""

    adds: float = 0.0
    """Relative L2 when its node reads exact inputs."""
    leaves: float = 0.0
    """Relative L2 when everything before it is half as well."""
    non_finite: int = 0
    """Elements that are NaN or infinite where FP32 is finite."""
    vanished: int = 0
    """Elements that are zero where FP32 is not, even though the node reads exact inputs."""
    largest: float = 0.0
    """The largest finite magnitude in FP32."""

    def worse(self, other: TensorTrace) -> TensorTrace:
        """Return the maximum of both, field by field."""
        return TensorTrace(
            max(self.adds, other.adds),
            max(self.leaves, other.leaves),
            max(self.non_finite, other.non_finite),
            max(self.vanished, other.vanished),
            max(self.largest, other.largest),
        )


@dataclass(frozen=True, slots=True)
class NodeTrace:
    """One node of the half model, with the errors (relative L2) that enter it, that it adds, and that leave it.

    `tensor` is its worst output. If the reference has no such tensor, `adds` and `leaves` are None, and the error that
    it adds appears at the next node that can be compared.
    """

    position: int
    """Its position in the order of execution, from 1."""
    node: str
    op_type: str
    precision: str
    """Precision of its result: `half` or `single`."""
    tensor: str
    reads: tuple[str, ...]
    """The nodes whose results it reads, also inside its subgraphs."""
    enters: float
    adds: float | None
    leaves: float | None
    non_finite: int = 0
    vanished: int = 0
    largest: float = 0.0
    reason: str = ""
    """The plan's reason for its precision; empty for a cast."""
    evidence: str = ""


class Tracer:
    """Runs both models on a few sets of inputs. Owns the session, which ends with the `with` block.

    `mixed` may be the beginning of a half model: outputs that it does not compute are FP32's. All methods raise
    InferenceError when a model fails on the inputs (for an index that rounding drove out of bounds, say).
    """

    def __init__(
        self, twins: Twins, mixed: ir.Model, fmt: HalfFormat, *, masks: bool = False, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        """Open the session. With `masks`, the plan clamps mask constants, and elements masked in both models are right."""
        self._pairs, self._mixed, self._fmt, self._masks = twins.pairs, mixed, fmt, masks
        wanted = {name for pair in twins.pairs.values() for name in (pair.reference, pair.half, pair.alone)}
        model, found = exposed(twins.model, wanted)
        self._readable = set(found)
        self._names = [value.name or "" for value in twins.model.graph.outputs]
        self._holder = session_for(model, settings=FAITHFUL)
        self._session: Session = self._holder.__enter__()
        self._probe = Probe(self._session, found, chunk_bytes // COPIES)
        self._outputs = twins.outputs

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.__exit__(None, None, None)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the inputs of the reference."""
        return tuple(spec for spec in self._session.inputs if spec.name != UPTO)

    def outputs(self, feeds: Feeds, upto: int) -> Feeds:
        """Return the outputs with the first `upto` nodes of the half model in half, and the rest in FP32."""
        values = self._session.run(feeds | {UPTO: np.array(upto, np.int64)}, self._names).values()
        return dict(zip(self._outputs, values, strict=True))

    def tensors(self, sets: Sequence[Feeds]) -> dict[str, TensorTrace]:
        """Return the errors of all tensors that both models have, by the half model's name.

        Tensors are read a few at a time, so that memory stays bounded.
        """
        found: dict[str, TensorTrace] = {}
        # Tensors of the reference with other types (half ones of its own, say) cannot be read.
        exact = self._readable | {spec.name for spec in self.inputs}
        pairs = {
            pair.half: pair
            for pair in self._pairs.values()
            if {pair.half, pair.alone} <= self._readable and pair.reference in exact
        }
        for feeds in sets:
            for chunk in self._probe.chunks(list(pairs)):
                values = self._read(feeds, [pairs[name] for name in chunk])
                for name in chunk:
                    pair = pairs[name]
                    traced = self._trace(pair, values)
                    found[pair.tensor] = found.get(pair.tensor, TensorTrace()).worse(traced)
        return found

    def _read(self, feeds: Feeds, pairs: Sequence[Pair]) -> Feeds:
        names = {name for pair in pairs for name in (pair.reference, pair.half, pair.alone)} & self._readable
        return feeds | self._probe.run(feeds | {UPTO: np.array(0, np.int64)}, sorted(names))

    def _trace(self, pair: Pair, values: Feeds) -> TensorTrace:
        exact = values[pair.reference]
        half, alone = (self._stored(values[name], pair) for name in (pair.half, pair.alone))
        if exact.dtype.kind != "f" or exact.shape != half.shape or exact.shape != alone.shape:
            return TensorTrace(tensor_error(exact, alone).relative, tensor_error(exact, half).relative)
        if self._masks:  # elements masked in both are right, and must not dominate the norm
            masked = (exact < MASKED) & (half < MASKED) & (alone < MASKED)
            exact, half, alone = (np.where(masked, np.float32(0), array) for array in (exact, half, alone))
        finite = np.isfinite(exact)
        return TensorTrace(
            adds=tensor_error(exact, alone).relative,
            leaves=tensor_error(exact, half).relative,
            non_finite=int(np.count_nonzero(finite & ~np.isfinite(half))),
            vanished=int(np.count_nonzero((alone == 0) & (exact != 0))),
            largest=float(np.abs(exact[finite]).max(initial=0.0)),
        )

    def _stored(self, array: Array, pair: Pair) -> Array:
        return round_through(array, self._fmt) if pair.is_rounded and array.dtype.kind == "f" else array

    def input_errors(self, sets: Sequence[Feeds]) -> dict[str, float]:
        """Return the rounding error of the inputs that the half model takes in half, by name."""
        halves = [value.name or "" for value in self._mixed.graph.inputs if value.dtype in HALF_TYPES]
        return {
            name: max(tensor_error(feeds[name], round_through(feeds[name], self._fmt)).relative for feeds in sets)
            for name in halves
        }


def trace_nodes(
    mixed: ir.Model, tensors: dict[str, TensorTrace], input_errors: dict[str, float]
) -> Iterator[NodeTrace]:
    """Yield all nodes of the half model's main graph, in order; a subgraph counts as part of its node."""
    carried = dict(input_errors)
    for position, node in enumerate(mixed.graph, start=1):
        reads = [value for value in outer_reads(node) if value.producer() is not None or value.name in carried]
        enters = max((carried.get(value.name or "", 0.0) for value in reads), default=0.0)
        made = [(tensors[value.name], value) for value in node.outputs if value.name in tensors]
        trace, worst = max(made, key=lambda pair: pair[0].leaves, default=(None, node.outputs[0]))
        for value in node.outputs:
            carried[value.name or ""] = tensors[value.name].leaves if value.name in tensors else enters
        found = NodeTrace(
            position=position,
            node=node.name or "",
            op_type=node.op_type,
            precision="half" if worst.dtype in HALF_TYPES else "single",
            tensor=worst.name or "",
            reads=tuple(dict.fromkeys(maker.name or "" for v in reads if (maker := v.producer()) is not None)),
            enters=enters,
            adds=None,
            leaves=None,
        )
        yield (
            found
            if trace is None
            else replace(
                found,
                adds=max(other.adds for other, _ in made),
                leaves=trace.leaves,
                non_finite=max(other.non_finite for other, _ in made),
                vanished=trace.vanished,
                largest=trace.largest,
            )
        )


def outer_reads(node: ir.Node) -> Iterable[ir.Value]:
    """Return the values of the main graph that a node reads, also inside its subgraphs."""
    bodies = [
        attribute.as_graph() for attribute in node.attributes.values() if attribute.type is ir.AttributeType.GRAPH
    ]
    inner = {value for body in bodies for each in body.all_nodes() for value in each.inputs}
    return [value for value in (*node.inputs, *inner) if value is not None and value.graph is node.graph]
