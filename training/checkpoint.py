"""Checkpoints: everything that a step changes, in safetensors and JSON, written whole or not at all.

    runs/digits/checkpoints/00001000/weights.safetensors, optimizer.safetensors, state.json

No file holds code: nothing here is pickled. A run that is resumed goes on bit for bit as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demi.bundles.drafts import draft_beside
from demi.errors import InputError, missing_package
from demi.training import ranks
from demi.training.parallel import gather_state, spread_state
from demi.training.request import TrainRequest
from demi.training.rng import RandomState, seed_everything
from demi.training.state import Counters, TrainState

FOLDER = "checkpoints"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
SCHEMA = 1


def save_checkpoint(request: TrainRequest, state: TrainState) -> Path:
    """Write a checkpoint of `state` into a run's folder, and return its own folder; older ones beyond `keep` go.

    All ranks call this, and the first one writes. Raises InputError when it cannot be written, a full disk say; earlier
    checkpoints are as they were.
    """
    target = request.folder / FOLDER / f"{state.counters.step:08d}"
    exists = not ranks.all_true(not target.is_dir(), state.device)
    if exists:
        return target
    weights, optimizer = _gathered(state)
    random = ranks.gather(RandomState.capture())
    if state.ranks.is_first:
        _write_checkpoint(target, request, state, weights, optimizer, random)
        for old in checkpoints(request.folder)[: -request.keep]:
            shutil.rmtree(old, ignore_errors=True)
    ranks.barrier()
    return target


def _gathered(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the whole weights and optimizer state; where they are sharded all ranks take part, and the first has them."""
    if state.sharded:
        return gather_state(state.model, state.optimizer)
    return state.plain_model.state_dict(), state.optimizer.state_dict()


def _write_checkpoint(
    target: Path,
    request: TrainRequest,
    state: TrainState,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    random: Sequence[RandomState],
) -> None:
    tensors, plain = _flatten(optimizer)
    for rank, each in enumerate(random):
        tensors |= each.tensors(f"rng.{rank}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft_beside(target) as draft:
            _write(draft / WEIGHTS, weights)
            _write(draft / OPTIMIZER, tensors)
            document = {
                "schema": SCHEMA,
                "precision": state.precision.name,
                "seed": request.seed,
                "shard": request.shard,
                "world": state.ranks.world,
                "counters": asdict(state.counters),
                "scaler": state.scaler.state_dict(),
                "optimizer": plain,
                "random": [each.plain() for each in random],
                "sha256": {name: _digest(draft / name) for name in (WEIGHTS, OPTIMIZER)},
            }
            (draft / STATE).write_text(json.dumps(document))
            draft.rename(target)
    except OSError as error:
        raise InputError(
            f"the checkpoint cannot be written: {error.strerror or error}",
            where=str(target),
            hint="free some space or choose another folder with -o, and go on with --resume",
        ) from error
    except TypeError as error:
        raise InputError(
            f"the optimizer's state cannot be stored: {error}",
            where=str(target),
            hint="a checkpoint holds tensors, numbers, text, lists and dicts",
        ) from error


def checkpoints(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the oldest first."""
    if not (run / FOLDER).is_dir():
        return []
    return sorted(path for path in (run / FOLDER).iterdir() if path.name.isdecimal() and (path / STATE).is_file())


def load_checkpoint(path: Path, request: TrainRequest, state: TrainState) -> None:
    """Put `state` and the random generators where a checkpoint was made.

    With another number of ranks than then, the data goes on where all of them together were, and each rank's random
    numbers begin anew. Raises InputError for a checkpoint that is damaged, of another precision, seed or model.
    """
    try:
        document = json.loads((path / STATE).read_bytes())
        found = {name: _digest(path / name) for name in (WEIGHTS, OPTIMIZER)}
        if document["schema"] != SCHEMA or document["sha256"] != found:
            raise ValueError("its files are not those that were written")
        weights, tensors = _read(path / WEIGHTS), _read(path / OPTIMIZER)
        counters, world = Counters(**document["counters"]), int(document["world"])
        random = [RandomState.read(tensors, each, f"rng.{rank}") for rank, each in enumerate(document["random"])]
        optimizer = _unflatten(tensors, document["optimizer"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"the checkpoint cannot be read: {error}", where=str(path), hint="remove it to go on from the one before"
        ) from error
    _check_same(document, path, request, state)
    try:
        if state.sharded:
            spread_state(state.model, state.optimizer, weights, optimizer)
        else:
            state.plain_model.load_state_dict(weights)
            state.optimizer.load_state_dict(optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"the checkpoint is of another model: {str(error).splitlines()[0]}",
            where=str(path),
            hint="use the task it was made with",
        ) from error
    if document["scaler"]:
        state.scaler.load_state_dict(document["scaler"])
    state.counters = counters
    if world == state.ranks.world:
        random[state.ranks.rank].restore()
    else:
        counters.batches = -(-counters.batches * world // state.ranks.world)
        seed_everything(request.seed + 1_000_003 * state.ranks.rank + 7919 * counters.step)


def read_weights(run: Path) -> dict[str, Tensor]:
    """Return the weights of a run's last checkpoint. Raises InputError where there is none, or it is damaged."""
    found = checkpoints(run)
    if not found:
        raise InputError("there is no checkpoint", where=str(run), hint="name the folder of a run of demi train")
    path = found[-1]
    try:
        document = json.loads((path / STATE).read_bytes())
        if document["sha256"][WEIGHTS] != _digest(path / WEIGHTS):
            raise ValueError("its weights are not those that were written")
        return _read(path / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"the checkpoint cannot be read: {error}", where=str(path), hint="remove it to take the one before"
        ) from error


def _check_same(document: Mapping[str, Any], path: Path, request: TrainRequest, state: TrainState) -> None:
    """Raise InputError where a run would not go on as it was begun."""
    now = {"precision": state.precision.name, "seed": request.seed}
    for name, value in now.items():
        if document[name] != value:
            begun = f"in {document[name]}" if name == "precision" else f"with {name} {document[name]}"
            raise InputError(f"the run was begun {begun}", where=str(path), hint=f"add --{name} {document[name]}")
    if (document["shard"] == "fsdp") != state.sharded:
        raise InputError(
            "FSDP stores the optimizer by names of weights, DDP and one process by their numbers",
            where=str(path),
            hint="go on with --shard fsdp" if not state.sharded else "go on without --shard fsdp",
        )


def weights_digest(state: TrainState) -> str:
    """Return the SHA-256 of all weights and buffers, by which two runs are compared bit for bit; all ranks call this."""
    digest = hashlib.sha256()
    weights, _ = _gathered(state)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors by name, and plain data in which each tensor is its name."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[key, plain(each, f"{name}.{key}")] for key, each in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [plain(each, f"{name}.{index}") for index, each in enumerate(value)]}
        if isinstance(value, list):
            return [plain(each, f"{name}.{index}") for index, each in enumerate(value)]
        return value

    return tensors, {"root": plain(state, "optimizer")}


def _unflatten(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> dict[str, Any]:
    """Join what `_flatten` split."""

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(each) for each in value]
        if not isinstance(value, Mapping):
            return value
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "tuple" in value:
            return tuple(whole(each) for each in value["tuple"])
        return {key: whole(each) for key, each in value["dict"]}

    joined: dict[str, Any] = whole(document["root"])
    return joined


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise missing_package("safetensors", "train") from error
    # A copy of each: weights that are tied share their memory, which the format refuses.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(copies, str(path))
    except SafetensorError as error:  # a full disk, in the library's own words
        raise OSError(str(error).rpartition("I/O error: ")[2]) from error


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded: dict[str, Tensor] = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return loaded


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
