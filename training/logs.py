"""The log of a run: a line of JSON for every step, always, and TensorBoard or Weights & Biases where wanted."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from demi.errors import InputError, PackageError, missing_package

FILE = "log.jsonl"
SINKS = ("tensorboard", "wandb")


class Sink(Protocol):
    """Takes the numbers of a step: anything with `log(values, step)`."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...


class Logs:
    """The log of a run. Use it as a context manager; a resumed run drops the lines of steps that are done again."""

    def __init__(self, folder: Path, sinks: Sequence[Sink] = (), *, step: int = 0) -> None:
        self._sinks = sinks
        kept = [line for line in read_log(folder) if line["step"] <= step] if step else []
        self._known = {(line["step"], frozenset(line)) for line in kept}
        draft = folder / f".{FILE}{os.getpid()}"
        draft.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")
        draft.replace(folder / FILE)  # a crash on the way leaves the former log whole
        self._file = (folder / FILE).open("a", encoding="utf-8")

    def log(self, values: Mapping[str, float | str | None], step: int) -> None:
        """Write one step: numbers to every sink, words (the cause of a skip) to the file alone.

        What a former process has logged of this very step, an evaluation say, is not logged again.
        """
        line = {"step": step} | {name: value for name, value in values.items() if value is not None}
        if (step, frozenset(line)) in self._known:
            return
        self._write(line)
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for sink in self._sinks:
            sink.log(numbers, step)

    def _write(self, line: Mapping[str, Any]) -> None:
        plain = {name: _plain(value) for name, value in line.items()}
        self._file.write(json.dumps(plain, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file and the sinks."""
        self._file.close()
        for sink in self._sinks:
            end = getattr(sink, "close", None)
            if end is not None:
                end()

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Unlogged:
    """The log of a rank that writes none."""

    def log(self, values: Mapping[str, float | str | None], step: int) -> None:
        """Write nothing."""

    def __enter__(self) -> Unlogged:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _plain(value: Any) -> Any:
    """Return a value that JSON has: NaN and infinities as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; a last line that was cut short by a crash is left out."""
    path = folder / FILE
    lines: list[dict[str, Any]] = []
    if not path.is_file():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def open_sinks(names: Sequence[str], folder: Path, *, step: int = 0) -> list[Sink]:
    """Return the sinks called `tensorboard` or `wandb`; a run resumed after `step` replaces what it does again.

    Raises InputError for another name, PackageError for a missing one.
    """
    return [_open(name, folder, step) for name in names]


def _open(name: str, folder: Path, step: int) -> Sink:
    if name == "tensorboard":
        return _TensorBoard(folder, step)
    if name == "wandb":
        return _Wandb(folder)
    raise InputError(f"unknown log `{name}`", where="--log", hint=f"use {' or '.join(SINKS)}")


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise missing_package("tensorboard", "train") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases; `WANDB_MODE=offline` writes to the run's folder and sends nothing."""

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise PackageError(
                "--log wandb needs the Python package `wandb`, which is not installed",
                hint="install it with: pip install wandb",
            ) from error
        # One identity for all processes of a run; W&B itself ignores steps that it has already.
        identity = folder / "wandb-id"
        if not identity.is_file():
            identity.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            dir=str(folder), project="demi", name=folder.name, id=identity.read_text().strip(), resume="allow"
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
