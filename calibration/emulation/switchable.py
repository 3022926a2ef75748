"""The switchable emulator: one session that runs any choice of half nodes.

Every place where a tensor may be read in half reads `If(switch, rounded, original)`. The switches are one boolean graph
input, and weights are graph inputs that are fed rounded or not. A trial costs one run instead of a new session, and a
tensor that is not rounded costs one copy.

A reader gets a rounded tensor if it computes in half itself (the tensor is cast) or if the maker does (the tensor is
stored in half). Those are the two conditions of an edge, (maker, reader).

Trials of a model are many and small, and ONNX Runtime casts with one thread: several runs side by side with a share of
the cores each take two thirds of the time that they take one after the other with all of them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from demi.calibration.emulation.side_by_side import in_order
from demi.calibration.emulation.switches import SWITCHES, OperandsLike, SwitchedGraph, input_source
from demi.calibration.observe import Probe, exposed
from demi.calibration.sessions import session_for
from demi.errors import InferenceError
from demi.float16 import HalfFormat, round_through
from demi.runtime.base import Session
from demi.runtime.cores import usable_cores
from demi.runtime.options import FAITHFUL
from demi.tensors import Array, Feeds


class Emulator:
    """Emulator of any set of half nodes; a context manager that owns its sessions and closes them."""

    def __init__(
        self,
        prepared: ir.Model,
        operands: Mapping[str, OperandsLike],
        fmt: HalfFormat,
        half_weights: Mapping[str, Array] | None = None,
        kernels: Mapping[str, str] | None = None,
        at_once: int = 1,
    ) -> None:
        """Build the session; `half_weights` holds weights whose value in half is not the rounded one.

        `kernels` names the kernel of each node that shares one: between half nodes of one kernel nothing is rounded.
        `at_once` is the number of runs that `run_each` may have under way together.
        """
        self._fmt = fmt
        self._kernels = kernels or {}
        self._names = [value.name or "" for value in prepared.graph.outputs]
        self._tensors = [value.name or "" for node in prepared.graph for value in node.outputs]
        self._builder = SwitchedGraph(prepared.clone(), operands, fmt, half_weights or {}, self._kernels)
        self._at_once = at_once
        self._stack = contextlib.ExitStack()
        self._session: Session = self._stack.enter_context(session_for(self._builder.model, settings=FAITHFUL))
        self._probe: Probe | None = None
        self._inputs = {input_source(value.name or "") for value in prepared.graph.inputs}
        self.held: frozenset[str] = frozenset()
        """Nodes that will stay single, whichever `half` is given to a run."""

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hold(self, single: AbstractSet[str]) -> None:
        """Hold these nodes single: they also read graph inputs unrounded."""
        self.held = frozenset(single)

    def run(self, half: AbstractSet[str], feeds: Feeds, *, stores: bool = False) -> Feeds:
        """Return the model's outputs with the nodes in `half` computing in half.

        With `stores`, only their results and their weights are rounded, and not the tensors that they read: the error
        is then theirs alone. Float graph inputs are named by `input_source(name)`.
        """
        return self._run(self._session, half, feeds, stores)

    def run_each(
        self, runs: Sequence[tuple[AbstractSet[str], Feeds]], *, stores: bool = False
    ) -> Iterator[Feeds | InferenceError]:
        """Yield the outputs of several runs, in order; the error of a run that fails."""
        together = self._at_once > 1 and len(runs) > 1
        session = self._narrow_session if together else self._session

        def attempt(run: tuple[AbstractSet[str], Feeds]) -> Feeds | InferenceError:
            try:
                return self._run(session, *run, stores)
            except InferenceError as error:
                return error

        return in_order(self._threads, self._at_once, attempt, runs) if together else map(attempt, runs)

    def _run(self, session: Session, half: AbstractSet[str], feeds: Feeds, stores: bool) -> Feeds:
        values = session.run(feeds | self._switch_feeds(half, stores)).values()
        return dict(zip(self._names, values, strict=True))

    @functools.cached_property
    def _narrow_session(self) -> Session:
        """A session whose runs use a share of the cores each."""
        settings = replace(FAITHFUL, threads=max(1, usable_cores() // self._at_once))
        return self._stack.enter_context(session_for(self._builder.model, settings=settings))

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return self._stack.enter_context(ThreadPoolExecutor(self._at_once, "demi-trial"))

    def chunks(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Yield the names of readable inner tensors in chunks for one run each; call `read` before taking the next."""
        if self._probe is None:
            copy, found = exposed(self._builder.model, set(self._tensors))
            self._probe = Probe(self._stack.enter_context(session_for(copy, settings=FAITHFUL)), found)
        known = set(self._probe.names)
        return self._probe.chunks([name for name in names if name in known])

    def read(self, half: AbstractSet[str], feeds: Feeds, chunk: Sequence[str]) -> Feeds:
        """Return one chunk of inner tensors as stored with the nodes in `half` computing in half."""
        assert self._probe is not None, "ask for `chunks` first"
        values = self._probe.run(feeds | self._switch_feeds(half), chunk)
        return {
            name: round_through(array, self._fmt) if self._builder.rounded_by.get(name) in half else array
            for name, array in values.items()
        }

    def _switch_feeds(self, half: AbstractSet[str], stores: bool = False) -> Feeds:
        edges = self._builder.edges
        on = (
            (self._is_stored(maker, reader, half) or (reader in half and not stores))
            and not self._is_inside(maker, reader, half, stores)
            for maker, reader in edges
        )
        switches = np.fromiter(on, np.bool_, len(edges))
        weights = {
            name: feed.half if feed.reader in half else feed.single for name, feed in self._builder.weights.items()
        }
        return ({SWITCHES: switches} if edges else {}) | weights

    def _is_stored(self, maker: str | None, reader: str | None, half: AbstractSet[str]) -> bool:
        """Return True if the reader gets the maker's rounded tensor; held readers get graph inputs unrounded."""
        return maker in half and not (maker in self._inputs and reader in self.held)

    def _is_inside(self, maker: str | None, reader: str | None, half: AbstractSet[str], stores: bool) -> bool:
        """Return True if one kernel makes and reads the tensor, which nothing rounds then; alone, each node is measured so."""
        if maker is None or reader is None or maker not in self._kernels:
            return False
        shares = self._kernels[maker] == self._kernels.get(reader)
        return shares and (stores or (maker in half and reader in half))
