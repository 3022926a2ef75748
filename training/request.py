"""What a training run is asked for, and what came out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from demi.errors import InputError
from demi.plan import PrecisionPlan
from demi.training.optimizer import OptimizerSettings
from demi.training.ranks import SHARDS
from demi.training.task import Task


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the user asked for. Raises InputError for numbers that cannot be."""

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
    """How many checkpoints stay."""
    logs: tuple[str, ...] = ()
    max_skips: int = 25
    """Skipped steps in a row after which the run gives up."""
    init_scale: float = 65536.0
    """The first loss scale, 2**16: PyTorch's own."""
    growth_interval: int = 2000
    """Steps without a skip after which the loss scale doubles."""

    shard: str = ""
    """How the ranks that `torchrun` started share the model: `ddp` or `fsdp`."""
    inspect_every: int = 0
    """Steps between those that are compared with FP32; 0 for none. FP32 itself and FSDP are not inspected."""
    rehearse: bool = False
    """Whether to compute a GPU's numbers in FP32 with every half tensor rounded, on a device without fast half."""
    plan: PrecisionPlan | None = None
    """Modules that stay in FP32."""
    find_plan: bool = False
    """Whether to measure such a plan before the first step."""
    plan_budget: float = 0.02
    """Relative L2 error of the gradients that a measured plan may have."""
    keep_fp32: tuple[str, ...] = ()
    """Modules that stay in FP32: paths, globs or names of classes."""
    save_model: bool = False
    """Whether to write the trained model and samples for `demi export`."""
    memory: bool = False
    """Whether to count the run's memory, into memory.json."""

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
        """Whether some modules stay in FP32."""
        return bool(self.find_plan or self.plan or self.keep_fp32)

    def _check_plan(self) -> None:
        if not self.plans:
            return
        if self.precision not in ("fp16", "bf16"):
            raise InputError(f"a plan for {self.precision}", where="--precision", hint="name fp16 or bf16")
        if self.shard == "fsdp":
            raise InputError("FSDP casts whole blocks itself", where="--shard", hint="use ddp, or leave the plan out")
        if self.plan is not None and (self.find_plan or self.keep_fp32):
            raise InputError("there is a plan already", where="--plan", hint="leave --find-plan and --keep-fp32 out")
        if self.plan is not None and self.plan.precision != self.precision:
            raise InputError(
                f"the plan is for {self.plan.precision}", where="--plan", hint="measure one for this precision"
            )


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out of a run."""

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
    """Whether it was stopped before its last step; `resume` goes on from there."""
