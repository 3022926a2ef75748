"""Running ranges: the largest output of every module, watched on every tenth step while a run trains.

The batches drawn for `demi export` are few (`reservoir.py`). Where training itself met a wider one, its number is known
here, so that it is read again and may become a sample. What early weights made says little about the trained model, so
that ranges begin anew in the second half of a run.

runs/digits/running_ranges.json    by module: `largest`, the number of its batch and the step
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from demi.training.task import tensors_of

FILE = "running_ranges.json"
EVERY = 10
"""Steps from one that is watched to the next."""


@dataclass(frozen=True, slots=True)
class Top:
    """The largest finite magnitude of a module's output so far."""

    largest: float
    batch: int
    """The number of the first batch of its step."""
    step: int


class RunningRanges:
    """The tops of a run's modules. Belongs to the run; written beside its checkpoints, and read when it is resumed."""

    def __init__(self, steps: int, found: dict[str, Top] | None = None) -> None:
        self._steps = steps
        self._found = dict(found or {})

    @classmethod
    def open(cls, folder: Path, steps: int, step: int) -> RunningRanges:
        """Return those of a run of so many steps that goes on after `step`; a file that cannot be read counts for nothing."""
        try:
            found = msgspec.json.decode((folder / FILE).read_bytes(), type=dict[str, Top]) if step else {}
        except (OSError, msgspec.MsgspecError):
            found = {}
        return cls(steps, {name: top for name, top in found.items() if top.step <= step})

    @property
    def tops(self) -> dict[str, Top]:
        """The top of each module, by its path, over the second half of the run, or over what there is of the first."""
        late = {name: top for name, top in self._found.items() if self._is_late(top.step)}
        return late or dict(self._found)

    def watching(self, model: nn.Module, step: int, batch: int) -> AbstractContextManager[object]:
        """Return a context in which a step's outputs are noted, if it is one of those that are watched."""
        return self._noting(model, step, batch) if step % EVERY == 0 else nullcontext()

    def save(self, folder: Path) -> None:
        """Write the tops into the run's folder."""
        document = {name: asdict(top) for name, top in self.tops.items()}
        (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")

    @contextmanager
    def _noting(self, model: nn.Module, step: int, batch: int) -> Iterator[None]:
        largest: dict[str, Tensor] = {}

        def note(name: str, output: object) -> None:
            for _, tensor in tensors_of(output):
                if tensor.is_floating_point() and tensor.numel():
                    size = torch.nan_to_num(tensor.detach().abs(), 0.0, 0.0, 0.0).max().float()
                    largest[name] = torch.maximum(largest[name], size) if name in largest else size

        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
            for name, module in model.named_modules()
            if name
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, size in largest.items():
                self._add(name, Top(float(size), batch, step))

    def _add(self, name: str, top: Top) -> None:
        known = self._found.get(name)
        is_first = known is None or (self._is_late(top.step) and not self._is_late(known.step))
        if is_first or (known is not None and top.largest > known.largest):
            self._found[name] = top

    def _is_late(self, step: int) -> bool:
        return 2 * step > self._steps
