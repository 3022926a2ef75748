"""Tracing an error through a half model: for every node, what enters, what it adds and what leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.trials import tensor_error
from demi.calibration.emulation.widen import HALF_TYPES
from demi.calibration.explain.twins import UPTO, Pair, Twins
from demi.calibration.observe import CHUNK_BYTES, Probe, exposed
from demi.calibration.sessions import session_for
from demi.float16 import HalfFormat, round_through
from demi.runtime.base import Session
from demi.runtime.options import FAITHFUL
from demi.tensors import Array, Feeds, TensorSpec

MASKED = -1e4
"""What a plan with masks may draw in: an element that is lower than this in both models stands for minus infinity."""

COPIES = 3
"""The reference, the half model, and the half model alone: each tensor is read from all three at once."""


@dataclass(frozen=True, slots=True)
class TensorTrace:
    """One tensor of the half model against the reference's, the worst over the sets of inputs."""

    adds: float = 0.0
    """Relative L2 when the node that makes it reads exact inputs."""
    leaves: float = 0.0
    """Relative L2 when everything before it is half as well."""
    non_finite: int = 0
    """Elements that are NaN or infinite where FP32 is finite."""
    vanished: int = 0
    """Elements that are zero where FP32 is not, by this node's own doing."""
    largest: float = 0.0
    """The largest finite magnitude in FP32."""

    def worse(self, other: TensorTrace) -> TensorTrace:
        """The worse of both, figure by figure."""
        return TensorTrace(
            max(self.adds, other.adds),
            max(self.leaves, other.leaves),
            max(self.non_finite, other.non_finite),
            max(self.vanished, other.vanished),
            max(self.largest, other.largest),
        )


@dataclass(frozen=True, slots=True)
class NodeTrace:
    """One node of the half model: the errors (relative L2) that enter it, that it adds, and that leave it.

    `tensor` is its worst output. Without a tensor of the reference to compare with, `adds` and `leaves` are None, and
    what it adds shows at the next node that has one.
    """

    position: int
    """Its place in the order of execution, from 1."""
    node: str
    op_type: str
    precision: str
    """`half` or `single`: what it stores its result in."""
    tensor: str
    reads: tuple[str, ...]
    """The nodes whose tensors it reads, those read inside its bodies included."""
    enters: float
    adds: float | None
    leaves: float | None
    non_finite: int = 0
    vanished: int = 0
    largest: float = 0.0
    reason: str = ""
    """Why it has its precision, as the plan says; empty for a cast."""
    evidence: str = ""


class Tracer:
    """Runs both models on a few sets of inputs. Owns the session; the caller ends it with `close` (or the `with` block).

    `mixed` may be the beginning of a half model: outputs that it does not make are FP32's. Its methods raise InferenceError
    when a model fails on the inputs (an index that rounding drove out of bounds, say).
    """

    def __init__(
        self, twins: Twins, mixed: ir.Model, fmt: HalfFormat, *, masks: bool = False, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        """With `masks` the plan draws in mask constants, and an element that is masked in both models is right."""
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
        """What the reference takes."""
        return tuple(spec for spec in self._session.inputs if spec.name != UPTO)

    def outputs(self, feeds: Feeds, upto: int) -> Feeds:
        """The reference's outputs when the first `upto` nodes of the half model are in half, and the rest is FP32."""
        values = self._session.run(feeds | {UPTO: np.array(upto, np.int64)}, self._names).values()
        return dict(zip(self._outputs, values, strict=True))

    def tensors(self, sets: Sequence[Feeds]) -> dict[str, TensorTrace]:
        """Every tensor that both models have, by the half model's name; a few at a time, so that memory is bounded."""
        found: dict[str, TensorTrace] = {}
        # A reference may hold tensors of other types, half ones of its own, that cannot be read.
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
        if self._masks:  # what is masked in both is right, and its size must not hide the errors of the rest
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
        """What is lost where the half model takes its inputs in half."""
        halves = [value.name or "" for value in self._mixed.graph.inputs if value.dtype in HALF_TYPES]
        return {
            name: max(tensor_error(feeds[name], round_through(feeds[name], self._fmt)).relative for feeds in sets)
            for name in halves
        }


def trace_nodes(
    mixed: ir.Model, tensors: dict[str, TensorTrace], input_errors: dict[str, float]
) -> Iterator[NodeTrace]:
    """Every node of the half model's main graph in order; tensors inside bodies count to the node they are in."""
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
    """What a node reads of the main graph, inside its bodies too."""
    bodies = [
        attribute.as_graph() for attribute in node.attributes.values() if attribute.type is ir.AttributeType.GRAPH
    ]
    inner = {value for body in bodies for each in body.all_nodes() for value in each.inputs}
    return [value for value in (*node.inputs, *inner) if value is not None and value.graph is node.graph]
