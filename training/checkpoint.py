"""Checkpoints: everything that a step changes, in safetensors and JSON, written whole or not at all.

    runs/digits/checkpoints/00001000/weights.safetensors, optimizer.safetensors, state.json

No file holds code: nothing here is pickled. A run that is resumed goes on bit for bit as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demi.bundles.drafts import draft_beside
from demi.errors import InputError, missing_package
from demi.training.rng import RandomState
from demi.training.state import Counters, TrainState

FOLDER = "checkpoints"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
SCHEMA = 1


def save_checkpoint(run: Path, state: TrainState, keep: int = 2) -> Path:
    """Write a checkpoint of `state` into a run's folder, and return its own folder; older ones beyond `keep` go.

    Raises InputError when it cannot be written, a full disk say; earlier checkpoints are as they were.
    """
    target = run / FOLDER / f"{state.counters.step:08d}"
    if target.is_dir():
        return target
    tensors, plain = _flatten(state.optimizer.state_dict())
    random = RandomState.capture()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft_beside(target) as draft:
            _write(draft / WEIGHTS, _model(state).state_dict())
            _write(draft / OPTIMIZER, tensors | random.tensors())
            document = {
                "schema": SCHEMA,
                "precision": state.precision.name,
                "counters": asdict(state.counters),
                "scaler": state.scaler.state_dict(),
                "optimizer": plain,
                "random": random.plain(),
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
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the oldest first."""
    if not (run / FOLDER).is_dir():
        return []
    return sorted(path for path in (run / FOLDER).iterdir() if path.name.isdecimal() and (path / STATE).is_file())


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Put `state` and the random generators where a checkpoint was made.

    Raises InputError for one that is damaged, of another precision, or of another model.
    """
    try:
        document = json.loads((path / STATE).read_bytes())
        found = {name: _digest(path / name) for name in (WEIGHTS, OPTIMIZER)}
        if document["schema"] != SCHEMA or document["sha256"] != found:
            raise ValueError("its files are not those that were written")
        weights, tensors = _read(path / WEIGHTS), _read(path / OPTIMIZER)
        counters = Counters(**document["counters"])
        random = RandomState.read(tensors, document["random"])
        optimizer = _unflatten(tensors, document["optimizer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the checkpoint cannot be read: {error}", where=str(path), hint="remove it to go on from the one before"
        ) from error
    if document["precision"] != state.precision.name:
        raise InputError(
            f"the run was begun in {document['precision']}",
            where=str(path),
            hint=f"add --precision {document['precision']}",
        )
    try:
        _model(state).load_state_dict(weights)
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
    random.restore()


def weights_digest(state: TrainState) -> str:
    """Return the SHA-256 of all weights and buffers, by which two runs are compared bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_model(state).state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _model(state: TrainState) -> torch.nn.Module:
    """Return the user's model, without DDP around it."""
    return getattr(state.model, "module", state.model)


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
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise missing_package("safetensors", "train") from error
    # A copy of each: weights that are tied share their memory, which the format refuses.
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, str(path))


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
