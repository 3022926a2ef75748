"""A trained model, handed to `demi export`: the program and real inputs, so that nothing has to be said twice.

runs/digits/model.pt2          the FP32 model in evaluation mode, as a program without the task's code
runs/digits/samples/0.npz ...  what the model is called with on batches of the run (`reservoir.py`)
runs/digits/ranges.json        the largest output of every module over more of them, and in training
"""

from __future__ import annotations

import copy
import inspect
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demi.bundles.drafts import draft_beside
from demi.errors import InputError
from demi.training.module_precision import without_plan
from demi.training.request import TrainRequest
from demi.training.reservoir import FILE as RANGES
from demi.training.reservoir import choose, look_at_batches, ranges_of
from demi.training.running_ranges import RunningRanges
from demi.training.state import TrainState
from demi.training.task import Batch, call_loss

MODEL, SAMPLES = "model.pt2", "samples"


def hand_over(request: TrainRequest, state: TrainState) -> None:
    """Write a run's model, samples and ranges into its folder.

    The inputs are what the task's `inputs(batch)` returns, a mapping by argument name, else what its `loss` calls the
    model with. Raises InputError where the model cannot be exported, with PyTorch's reason.
    """
    model = without_plan(copy.deepcopy(state.plain_model)).float().eval()
    tops = RunningRanges.open(request.folder, request.steps, state.counters.step).tops
    seen = look_at_batches(request, state, model, tops)
    if not seen:
        raise InputError(
            "no batch of the run is finite, so that there is no sample", where="TASK", hint="clean the data"
        )
    samples = [inputs_of(state, model, each.batch) for each in choose(seen)]
    folder = request.folder
    (folder / RANGES).write_text(json.dumps(ranges_of(seen, tops), indent=2) + "\n")
    program = _export(model.cpu(), samples[0])
    target = folder / SAMPLES
    with draft_beside(target) as draft:
        _save(program, draft / MODEL)
        for number, sample in enumerate(samples):
            arrays: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in sample.items()}
            np.savez(draft / f"{number}.npz", **arrays)
        (draft / MODEL).replace(folder / MODEL)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)


def _save(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program, from memory: PyTorch's own writer ends the process where the disk is full."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def inputs_of(state: TrainState, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the tensors that the model takes for a batch, by argument name."""
    own: Callable[[Batch], Mapping[str, Tensor]] | None = getattr(state.task, "inputs", None)
    if own is not None:
        return {name: tensor.cpu() for name, tensor in own(batch).items()}
    calls: list[dict[str, Tensor]] = []
    signature = inspect.signature(model.forward)

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs).arguments
        calls.append({name: value.cpu() for name, value in bound.items() if isinstance(value, Tensor)})

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            call_loss(state.task, model, batch)
    finally:
        handle.remove()
    if not calls or not calls[0]:
        raise InputError(
            "the task's loss does not call the model with tensors",
            where="TASK",
            hint="give the task a method inputs(batch) that returns {argument name: tensor}",
        )
    return calls[0]


def _export(model: nn.Module, sample: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """Return the model as a program with as many free axes as it allows."""
    free = {name: dict.fromkeys(range(tensor.ndim), torch.export.Dim.AUTO) for name, tensor in sample.items()}
    try:
        return torch.export.export(model, (), dict(sample), dynamic_shapes=free)
    except Exception as error:  # PyTorch raises whatever its tracing met
        raise InputError(
            f"the model cannot be exported: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            where="--save-model",
            hint="the run itself is saved; export its weights with demi export --model, or give the task inputs(batch)",
        ) from error
