"""The log of a run: a line of JSON for every step, always, and TensorBoard or Weights & Biases where wanted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from demi.errors import InputError, missing_package

FILE = "log.jsonl"
SINKS = ("tensorboard", "wandb")


class Sink(Protocol):
    """Takes the numbers of a step: anything with `log(values, step)`."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...


class Logs:
    """The log of a run. Use it as a context manager; a resumed run drops the lines of steps that are done again."""

    def __init__(self, folder: Path, sinks: Sequence[Sink] = (), *, step: int = 0) -> None:
        self._path, self._sinks = folder / FILE, sinks
        kept = [line for line in read_log(folder) if line["step"] <= step] if step else []
        self._file = self._path.open("w", encoding="utf-8")
        for line in kept:
            self._write(line)

    def log(self, values: Mapping[str, float | str | None], step: int) -> None:
        """Write one step: numbers to every sink, words (the cause of a skip) to the file alone."""
        self._write({"step": step} | {name: value for name, value in values.items() if value is not None})
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


def open_sinks(names: Sequence[str], folder: Path) -> list[Sink]:
    """Return the sinks called `tensorboard` or `wandb`; InputError for another name, PackageError for a missing one."""
    return [_open(name, folder) for name in names]


def _open(name: str, folder: Path) -> Sink:
    if name == "tensorboard":
        return _TensorBoard(folder)
    if name == "wandb":
        return _Wandb(folder)
    raise InputError(f"unknown log `{name}`", where="--log", hint=f"use {' or '.join(SINKS)}")


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise missing_package("tensorboard", "train") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

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
            raise missing_package("wandb", "train") from error
        self._run = wandb.init(dir=str(folder), project="demi", name=folder.name, resume="allow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
