"""The precision plan: the precision of every float node, half or single, with the reason.

The plan is the only interface between decisions (op list, measured planner, user) and conversion (`passes.lower`).
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
"""Operators that read a tensor's shape and not its numbers; its precision does not matter to them."""


class Precision(Enum):
    """The precision that a node computes in."""

    HALF = "half"
    SINGLE = "single"

    @property
    def label(self) -> str:
        """The name in messages and tables: `half` or `FP32`. Files and `--json` have the value."""
        return "FP32" if self is Precision.SINGLE else self.value


class Reason(Enum):
    """The reason for a node's precision. `docs/precision.md` has an example of each."""

    SAFE = "safe"
    """Half: there is no reason against it."""
    RESCALED = "rescaled"
    """Half: its tensors fit since constants were multiplied by powers of two, which changes no answer."""
    STABLE_FORM = "stable-form"
    """Half: part of an expression that was rewritten so that it does not overflow; FP32 answers move by rounding."""
    NO_HALF_TYPE = "no-half-type"
    """The operator's schema does not allow half here."""
    NO_HALF_KERNEL = "no-half-kernel"
    """The schema allows half, but the runtimes have no kernel for it."""
    CONTROL_FLOW = "control-flow"
    """If, Loop and Scan keep the types of their inputs and outputs; the nodes inside have decisions of their own."""
    UNKNOWN_OP = "unknown-operator"
    """A custom operator without a schema keeps its own types."""
    REDUCTION = "reduction"
    """A long sum is stored in half, inside the kernel or at its end."""
    EXPONENTIAL = "exponential"
    """Exp, Log and powers exceed half's range for ordinary inputs."""
    NORMALIZATION = "normalization"
    """Part of a normalization in primitive operators, whose square, sum, epsilon or root exceeds half's range."""
    INTEGER_VALUED = "integer-valued"
    """Positions, lengths and counts in float: half holds integers exactly only to 2,048 (BF16: 256)."""
    VANISHING_CONSTANT = "vanishing-constant"
    """A non-zero constant, such as an epsilon of 1e-12, would become zero."""
    OVERFLOWING_CONSTANT = "overflowing-constant"
    """A finite constant would become infinite."""
    OVERFLOW = "overflow"
    """A tensor that it reads or writes comes close to the largest half or exceeds it, over the samples."""
    UNDERFLOW = "underflow"
    """A tensor that it reads or writes lies entirely below the smallest normal half."""
    GUARDED = "guarded"
    """Divides by, or takes a root or logarithm of, a value that a vanishing constant keeps above zero."""
    ERROR_BORN = "error-born"
    """Under the emulator, its output has a large error that its inputs do not have."""
    FEEDS_MAGNIFIER = "feeds-magnifier"
    """A later node magnifies the rounding error of its result."""
    SENSITIVE = "sensitive"
    """The minimum cut kept it single to stay within the budget: its share of the error is large for the time it saves."""
    CHEAPER = "cheaper-in-fp32"
    """Casts around it would cost more time than half precision saves."""
    SELECTION = "selection"
    """Ranks or compares close scores: rounding would change the selection."""
    RANDOM = "random"
    """Draws random numbers, which are the same for FP32 and half only when both are drawn in FP32."""
    PINNED = "pinned"
    """Set by the user, to single or to half."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Precision of one node, with the reason, and the evidence in words."""

    node: str
    op_type: str
    precision: Precision
    reason: Reason
    evidence: str = ""
    sensitivity: float | None = None
    """Relative L2 of the outputs when only this node's results are rounded, as a share of the budget; None if not measured."""
    share: float | None = None
    """Its share of the predicted squared error; None if not measured, and 0 if it rounds nothing."""
    group: int = 0
    """Number of the group with which it was measured, whose members have equal parts of one error; 0 if measured alone."""

    @property
    def is_half(self) -> bool:
        """Return whether the node computes in half."""
        return self.precision is Precision.HALF


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """A decision for every node that touches float32 tensors, by node name."""

    precision: str
    """`fp16` or `bf16`."""
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    masks: frozenset[str] = frozenset()
    """Names of mask constants that are clamped to half's range (`demi.exporter.operators.mask_constants`)."""
    kernels: Mapping[str, str] = field(default_factory=dict)
    """By node, the kernel of the target that computes it with others, and rounds only what leaves it; most plans name none."""
    epsilons: frozenset[str] = frozenset()
    """Names of epsilons that would vanish, and become half's smallest number (`demi.exporter.operators.epsilons`)."""

    def __getitem__(self, node: str) -> Decision:
        return self.decisions[node]

    def is_half(self, node: str) -> bool:
        """Return whether the node computes in half; False for a node that is not in the plan."""
        decision = self.decisions.get(node)
        return decision is not None and decision.is_half

    @property
    def computing(self) -> list[Decision]:
        """Return the decisions on nodes that compute with floats; Shape and Size do not."""
        return [decision for decision in self.decisions.values() if decision.op_type not in SIZES_ONLY]

    def counts(self) -> list[tuple[Decision, int]]:
        """Return one decision for each (precision, reason) as an example, with the number of such nodes; half first."""
        tally = Counter((d.precision, d.reason) for d in self.computing)
        first: dict[tuple[Precision, Reason], Decision] = {}
        for decision in self.computing:
            first.setdefault((decision.precision, decision.reason), decision)
        order = sorted(tally, key=lambda key: (key[0] is not Precision.HALF, -tally[key], key[1].value))
        return [(first[key], tally[key]) for key in order]

    @property
    def half_nodes(self) -> int:
        """Return the number of nodes that compute in half."""
        return sum(decision.is_half for decision in self.computing)

    def to_json(self) -> bytes:
        """Return the plan as indented JSON, in graph order."""
        document = {
            "schema": SCHEMA,
            "precision": self.precision,
            "masks": sorted(self.masks),
            "decisions": list(self.decisions.values()),
        }
        document |= {"kernels": self.kernels} if self.kernels else {}
        document |= {"epsilons": sorted(self.epsilons)} if self.epsilons else {}
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


class _PlanFile(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    precision: str
    decisions: list[Decision]
    masks: list[str] = []
    kernels: dict[str, str] = {}
    epsilons: list[str] = []


def make_plan(
    precision: str,
    decisions: Iterable[Decision],
    masks: Iterable[str] = (),
    kernels: Mapping[str, str] | None = None,
    epsilons: Iterable[str] = (),
) -> PrecisionPlan:
    """Return the plan of these decisions, in order, with the names of its masks and epsilons and the target's kernels."""
    by_node = {decision.node: decision for decision in decisions}
    return PrecisionPlan(precision, by_node, frozenset(masks), kernels or {}, frozenset(epsilons))


_HOW_TO_WRITE = "write a plan with `demi calibrate`, and edit nothing but `precision` in it"


def read_plan(path: Path) -> PrecisionPlan:
    """Read a plan from its JSON file. Raises InputError, naming the field that is wrong."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_PlanFile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the plan cannot be read: {error}", where=str(path), hint=_HOW_TO_WRITE) from error
    if problem := _problem(document):
        raise InputError(f"the plan cannot be read: {problem}", where=str(path), hint=_HOW_TO_WRITE)
    return make_plan(document.precision, document.decisions, document.masks, document.kernels, document.epsilons)


def _problem(document: _PlanFile) -> str | None:
    if document.schema != SCHEMA:
        return f"it has schema {document.schema}; this Demi reads schema {SCHEMA}"
    if document.precision not in FORMATS:
        return f"unknown precision `{document.precision}`"
    counts = Counter(decision.node for decision in document.decisions)
    return next((f"it names `{node}` twice" for node, count in counts.items() if count > 1), None)
