"""The precision plan: for every float node, half or single, and why.

The plan is the one interface between deciding (op list, measured planner, the user's edits) and doing (`passes.lower`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import msgspec

from demi.errors import InputError
from demi.float16 import FORMATS

SCHEMA = 1
"""The number of the plan's file format."""


SIZES_ONLY = frozenset({"Shape", "Size"})
"""Operators that read a tensor's size and none of its numbers: in whichever precision it lies there."""


class Precision(Enum):
    """What a node computes in."""

    HALF = "half"
    SINGLE = "single"


class Reason(Enum):
    """Why a node has the precision it has. `docs/precision.md` has an example of each."""

    SAFE = "safe"
    """Half: nothing speaks against it."""
    NO_HALF_TYPE = "no-half-type"
    """The operator's schema takes no half type here."""
    NO_HALF_KERNEL = "no-half-kernel"
    """The schema allows half, the runtimes have no kernel for it."""
    CONTROL_FLOW = "control-flow"
    """If, Loop and Scan keep the types at their border; the nodes inside have their own."""
    UNKNOWN_OP = "unknown-operator"
    """A custom operator without a schema keeps its own types."""
    REDUCTION = "reduction"
    """A long sum is stored in half inside the kernel or at its end."""
    EXPONENTIAL = "exponential"
    """Exp, Log and powers leave half's range for ordinary inputs."""
    NORMALIZATION = "normalization"
    """Part of a normalization written out in primitives: its square, sum, epsilon or root leaves half's range."""
    INTEGER_VALUED = "integer-valued"
    """Positions, lengths and counts in float: half holds integers exactly only to 2,048 (BF16: 256)."""
    VANISHING_CONSTANT = "vanishing-constant"
    """A non-zero constant, such as an epsilon of 1e-12, would become zero."""
    OVERFLOWING_CONSTANT = "overflowing-constant"
    """A finite constant would become infinite."""
    OVERFLOW = "overflow"
    """A tensor it reads or makes comes near or beyond the largest half, over the samples."""
    UNDERFLOW = "underflow"
    """A tensor it reads or makes lies below the smallest normal half altogether."""
    GUARDED = "guarded"
    """Divides by, or takes a root or logarithm of, what a vanishing constant keeps from zero."""
    ERROR_BORN = "error-born"
    """The emulator shows a large error at its output that is not at its inputs."""
    FEEDS_MAGNIFIER = "feeds-magnifier"
    """What half loses in its result is magnified by a node after it."""
    SENSITIVE = "sensitive"
    """The cut gave it up to stay within the budget: its share of the error is large for the time it saves."""
    CHEAPER = "cheaper-in-fp32"
    """Casts around it would cost more than half saves."""
    SELECTION = "selection"
    """Ranks or compares close scores: rounding would change which one is taken."""
    RANDOM = "random"
    """Draws random numbers: they are the same for FP32 and half only where both draw in FP32."""
    PINNED = "pinned"
    """The user said so, for single or for half."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Precision of one node, with the reason and its evidence in words."""

    node: str
    op_type: str
    precision: Precision
    reason: Reason
    evidence: str = ""
    sensitivity: float | None = None
    """Relative L2 at the outputs when only what this node stores is rounded, as a share of the budget; None: not measured."""
    share: float | None = None
    """Its share of the predicted squared error."""

    @property
    def is_half(self) -> bool:
        """Whether the node computes in half."""
        return self.precision is Precision.HALF


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """A decision for every node that touches float32 tensors, by node name."""

    precision: str
    """`fp16` or `bf16`."""
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    masks: frozenset[str] = frozenset()
    """Mask constants beyond half's range that are drawn in when they become half (`demi.exporter.operators.mask_constants`), by name."""

    def __getitem__(self, node: str) -> Decision:
        return self.decisions[node]

    def is_half(self, node: str) -> bool:
        """Whether the node computes in half; a node the plan does not know stays as it is."""
        decision = self.decisions.get(node)
        return decision is not None and decision.is_half

    @property
    def computing(self) -> list[Decision]:
        """The decisions about nodes that compute with floats; one that asks a half tensor for its shape does not."""
        return [decision for decision in self.decisions.values() if decision.op_type not in SIZES_ONLY]

    def counts(self) -> list[tuple[Decision, int]]:
        """One decision as an example for each (precision, reason), with how many nodes share it; half first."""
        tally = Counter((d.precision, d.reason) for d in self.computing)
        first: dict[tuple[Precision, Reason], Decision] = {}
        for decision in self.computing:
            first.setdefault((decision.precision, decision.reason), decision)
        order = sorted(tally, key=lambda key: (key[0] is not Precision.HALF, -tally[key], key[1].value))
        return [(first[key], tally[key]) for key in order]

    @property
    def half_nodes(self) -> int:
        """How many nodes compute in half."""
        return sum(decision.is_half for decision in self.computing)

    def to_json(self) -> bytes:
        """The plan as indented JSON, in graph order."""
        document = {
            "schema": SCHEMA,
            "precision": self.precision,
            "masks": sorted(self.masks),
            "decisions": list(self.decisions.values()),
        }
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


class _PlanFile(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    precision: str
    decisions: list[Decision]
    masks: list[str] = []


def make_plan(precision: str, decisions: Iterable[Decision], masks: Iterable[str] = ()) -> PrecisionPlan:
    """A plan from its decisions, in order, and the names of its mask constants."""
    return PrecisionPlan(precision, {decision.node: decision for decision in decisions}, frozenset(masks))


_HOW_TO_WRITE = "let `demi calibrate` write a plan, and change nothing but `precision` in it"


def read_plan(path: Path) -> PrecisionPlan:
    """A plan from its JSON file; InputError says which field is wrong."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_PlanFile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the plan cannot be read: {error}", where=str(path), hint=_HOW_TO_WRITE) from error
    if problem := _problem(document):
        raise InputError(f"the plan cannot be read: {problem}", where=str(path), hint=_HOW_TO_WRITE)
    return make_plan(document.precision, document.decisions, document.masks)


def _problem(document: _PlanFile) -> str | None:
    if document.schema != SCHEMA:
        return f"it has schema {document.schema}; this Demi reads schema {SCHEMA}"
    if document.precision not in FORMATS:
        return f"unknown precision `{document.precision}`"
    counts = Counter(decision.node for decision in document.decisions)
    return next((f"it names `{node}` twice" for node, count in counts.items() if count > 1), None)
