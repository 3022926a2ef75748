"""Helpers of the planning tests: run models with chosen nodes in half, facts of tiny models, and fake trials."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.calibration.emulation.switchable import Emulator
from demi.calibration.emulation.tensor_errors import TensorError
from demi.calibration.emulation.trials import TrialRunner
from demi.calibration.emulation.widen import widen
from demi.calibration.observe import observe
from demi.calibration.samples import Samples
from demi.exporter.operators.schemas import Operands, half_dtype, half_operands, opset_version, touches_float
from demi.exporter.passes.lower import apply_plan
from demi.exporter.planning.constraints import constrain
from demi.exporter.planning.measured_facts import Measured, measured_facts
from demi.exporter.planning.repair_state import Graph
from demi.float16 import FP16, HalfFormat
from demi.plan import Decision, Precision, PrecisionPlan, Reason, make_plan
from demi.tensors import Feeds
from tests.models import prepared, run


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    """Return normal random numbers in float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def listed(array: Any) -> str:
    """Format an array as ONNX text."""
    return ", ".join(f"{number:.9g}" for number in np.asarray(array).ravel())


def samples(*feeds: Feeds) -> Samples:
    """Return these sets of inputs as samples."""
    return Samples(feeds, "the test")


def operands(model: ir.Model, fmt: HalfFormat = FP16) -> dict[str, Operands]:
    """Return the half operands of every node that can be half, by name."""
    half = half_dtype(fmt)
    found = {node.name: half_operands(node, opset_version(node, model), half) for node in model.graph.all_nodes()}
    return {name: each for name, each in found.items() if each}


def emulator(model: ir.Model, fmt: HalfFormat = FP16) -> Emulator:
    """Return the switchable emulator of a prepared model in which every node may be half."""
    return Emulator(model, operands(model, fmt), fmt)


def plan(model: ir.Model, half: Collection[str], fmt: HalfFormat = FP16) -> PrecisionPlan:
    """Return a plan with the nodes in `half` in half and all others in single."""
    return make_plan(
        fmt.name,
        [
            Decision(node.name, node.op_type, Precision.HALF if node.name in half else Precision.SINGLE, Reason.SAFE)
            for node in model.graph.all_nodes()
            if touches_float(node)
        ],
    )


def emulated(model: ir.Model, half: Collection[str], feeds: Feeds, fmt: HalfFormat = FP16) -> Feeds:
    """Return the outputs of the lowered model with every rounding written as nodes."""
    return run(widen(apply_plan(model, plan(model, half, fmt)).model), feeds)


def facts(source: str, *feeds: Feeds, fmt: HalfFormat = FP16, keep: Sequence[str] = ()) -> Measured:
    """Return the measured facts about a model text."""
    model = prepared(source)
    return measured_facts(model, fmt, observe(model, samples(*feeds)), keep)


def verdicts(
    source: str, *feeds: Feeds, fmt: HalfFormat = FP16, keep: Sequence[str] = (), force: Sequence[str] = ()
) -> dict[str, tuple[Reason, str]]:
    """Return the nodes of a model text that must stay single, with reason and evidence."""
    return constrain(facts(source, *feeds, fmt=fmt, keep=keep), force)


def reasons(source: str, *feeds: Feeds, **options: Any) -> dict[str, Reason]:
    """Return the nodes that must stay single, with the reason alone."""
    return {name: reason for name, (reason, _) in verdicts(source, *feeds, **options).items()}


@dataclass
class Bench:
    """A model with its graph and a runner of trials, as repair needs them."""

    model: ir.Model
    graph: Graph
    runner: TrialRunner
    candidates: frozenset[str]


@contextlib.contextmanager
def bench(source: str | ir.Model, *feeds: Feeds, budget: Budget | None = None) -> Iterator[Bench]:
    """Open a Bench for a model in which every node may be half."""
    model = prepared(source) if isinstance(source, str) else source
    with emulator(model) as each:
        runner = TrialRunner(each, feeds, budget or Budget())
        yield Bench(model, Graph(model), runner, frozenset(operands(model)))


class FakeRunner:
    """Fake runner of a model whose nodes' squared errors are given and add up; records the requested choices."""

    def __init__(self, squares: Mapping[str, Sequence[float]], together: float = 1.0) -> None:
        self.squares = squares
        self.together = together
        """Ratio of the joint error of all nodes to the sum."""
        self.asked: list[frozenset[str]] = []

    def shares_of_each(self, halves: Sequence[frozenset[str]], *, stores: bool = True) -> Iterator[tuple[float, ...]]:
        """Yield the shares of several choices."""
        return (self.shares(half, stores=stores) for half in halves)

    def shares(self, half: frozenset[str], *, stores: bool = True) -> tuple[float, ...]:
        """Return the sum of the nodes' squares for each output."""
        self.asked.append(half)
        factor = self.together if len(half) == len(self.squares) else 1.0
        columns = zip(*(self.squares[name] for name in half), strict=True)
        return tuple(factor * sum(column) for column in columns)


@dataclass(frozen=True)
class FakeComparison:
    """The result of a FakeSearch for a choice of half nodes."""

    load: float
    passed: bool = True

    def __bool__(self) -> bool:
        return self.passed


class FakeSearch:
    """Fake runner whose load is a function of the half nodes; records the requested choices."""

    def __init__(self, load: Any) -> None:
        self._load = load
        self.asked: list[frozenset[str]] = []

    def compare(self, half: Collection[str]) -> FakeComparison:
        """Return the load of these half nodes, for `load` to read."""
        self.asked.append(frozenset(half))
        found = self._load(frozenset(half))
        return found if isinstance(found, FakeComparison) else FakeComparison(found)

    def verify(self, half: Collection[str]) -> tuple[FakeComparison, float]:
        """Return the comparison and the load of these half nodes."""
        comparison = self.compare(half)
        return comparison, comparison.load

    def load(self, comparison: FakeComparison) -> float:
        """Return the load that `compare` found."""
        return comparison.load

    def scale(self, output: str) -> float:
        """Return the default budget."""
        return 1e-2

    def tensor_errors(self, half: Collection[str], names: Sequence[str]) -> dict[str, TensorError] | None:
        """Return None: the fake has no tensors."""
        return None
