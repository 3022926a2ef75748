"""Request for a training run, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from demi.errors import InputError
from demi.plan import PrecisionPlan
from demi.training.optimizer import OptimizerSettings
from demi.training.ranks import SHARDS
from demi.training.task import Task

NO_PLAN = {
    "bf16-pure": "its weights are BF16 themselves, so that a module in FP32 would compute with rounded ones",
    "fsdp": "it casts each block's weights as a whole before the block runs, below the modules that a plan names",
    "fp32": "nothing is half",
    "auto": "a plan is measured for one type",
}
"""Reasons why a precision or a way of sharing has no modules of another precision."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Request for a training run. Raises InputError for numbers that cannot be."""

    task: Task
    steps: int
    folder: Path
    """The run's folder: its log, its checkpoints, its results."""
    precision: str = "auto"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    accumulate: int = 1
    """Batches a step."""
    clip: float | None = 1.0
    """Largest L2 norm of the gradients; None for no limit."""
    seed: int = 0
    device: str = "cpu"
    resume: bool = False
    save_every: int = 500
    evaluate_every: int = 0
    """Steps between evaluations; 0 evaluates at the end alone."""
    keep: int = 2
    """Number of checkpoints that stay."""
    logs: tuple[str, ...] = ()
    max_skips: int = 25
    """Skipped steps in a row after which the run gives up."""
    init_scale: float = 65536.0
    """The first loss scale, 2**16: PyTorch's own."""
    growth_interval: int = 2000
    """Steps without a skip after which the loss scale doubles."""

    shard: str = ""
    """`ddp` or `fsdp`: the way in which the ranks that `torchrun` started share the model."""
    inspect_every: int = 0
    """Steps between those that are compared with FP32; 0 for none. FP32 itself and FSDP are not inspected."""
    rehearse: bool = False
    """True to compute a GPU's numbers in FP32 with every half tensor rounded, on a device without fast half."""
    plan: PrecisionPlan | None = None
    """Modules that stay in FP32."""
    find_plan: bool = False
    """True to measure such a plan before the first step."""
    plan_budget: float = 0.02
    """Relative L2 error of the gradients that a measured plan may have."""
    keep_fp32: tuple[str, ...] = ()
    """Modules that stay in FP32: paths, globs or names of classes."""
    save_model: bool = False
    """True to write the trained model and samples for `demi export`."""
    memory: bool = False
    """True to count the run's memory, into memory.json."""

    def __post_init__(self) -> None:
        if self.shard not in SHARDS:
            raise InputError(f"unknown sharing `{self.shard}`", where="--shard", hint="use ddp or fsdp")
        if self.save_model and self.shard == "fsdp":
            raise InputError("a sharded model is not exported", where="--save-model", hint="use --shard ddp")
        if self.rehearse and self.device != "cpu":
            raise InputError(
                "a GPU computes in half itself", where="--rehearse", hint="leave it out, or use --device cpu"
            )
        self._check_plan()
        for name in ("steps", "accumulate", "save_every", "keep", "max_skips", "growth_interval"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, not a whole number above 0")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip is {self.clip}, not a number above 0", hint="leave it out for no limit")

    @property
    def plans(self) -> bool:
        """Return whether some modules stay in FP32."""
        return bool(self.find_plan or self.plan or self.keep_fp32)

    def _check_plan(self) -> None:
        if not self.plans:
            return
        if self.precision not in ("fp16", "bf16"):
            raise InputError(
                f"{self.precision} takes no plan: {NO_PLAN.get(self.precision, 'it computes in one type')}",
                where="--precision",
                hint="use fp16 or bf16, or leave the plan out",
            )
        if self.shard == "fsdp":
            raise InputError(
                f"fsdp takes no plan: {NO_PLAN['fsdp']}", where="--shard", hint="use ddp, or leave the plan out"
            )
        if self.plan is not None and (self.find_plan or self.keep_fp32):
            raise InputError("there is a plan already", where="--plan", hint="leave --find-plan and --keep-fp32 out")
        if self.plan is not None and self.plan.precision != self.precision:
            raise InputError(
                f"the plan is for {self.plan.precision}", where="--plan", hint="measure one for this precision"
            )


@dataclass(frozen=True, slots=True)
class Trained:
    """Result of a run."""

    folder: Path
    precision: str
    steps: int
    updates: int
    skipped: dict[str, int]
    """Skipped steps by cause."""
    loss: float
    """Of the last step that updated the weights."""
    metrics: dict[str, float]
    seconds: float
    """Time spent in steps by this process."""
    digest: str
    """SHA-256 of the weights."""
    interrupted: bool = False
    """True if it was stopped before its last step; `resume` goes on from there."""
