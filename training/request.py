"""What a training run is asked for, and what came out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from demi.errors import InputError
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
    save_model: bool = False
    """Whether to write the trained model and samples for `demi export`."""
    memory: bool = False
    """Whether to count the run's memory, into memory.json."""

    def __post_init__(self) -> None:
        if self.shard not in SHARDS:
            raise InputError(f"unknown sharing `{self.shard}`", where="--shard", hint="use ddp or fsdp")
        if self.save_model and self.shard == "fsdp":
            raise InputError("a sharded model is not exported", where="--save-model", hint="use --shard ddp")
        for name in ("steps", "accumulate", "save_every", "keep", "max_skips", "growth_interval"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, not a whole number above 0")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip is {self.clip}, not a number above 0", hint="leave it out for no limit")


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
