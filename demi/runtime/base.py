"""The interface of all runtimes: a Session on a Device."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from demi.errors import InputError
from demi.tensors import Feeds, TensorSpec


@dataclass(frozen=True, slots=True)
class Device:
    """Device that a model runs on: `cpu`, or `cuda` with the index of the GPU."""

    kind: str = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> Device:
        """Parse `cpu`, `cuda` or `cuda:1`. Raises InputError for other texts."""
        match = re.fullmatch(r"(cpu)|(cuda)(?::(\d+))?", text.strip().lower())
        if not match:
            raise InputError(f"unknown device `{text}`", hint="use cpu, cuda or cuda:N")
        return cls() if match[1] else cls("cuda", int(match[3] or 0))


CPU = Device()


class Session(Protocol):
    """A loaded model. `run` is thread-safe."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def device(self) -> Device: ...

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model on one set of inputs, and return all outputs or those named. Raises InferenceError."""
        ...


def stop(session: Session) -> bool:
    """Stop the current runs of a session, which then raise StoppedError. Return whether the session supports it.

    A session that does has a method `stop`, which is thread-safe; a run ends after its current node.
    """
    end: Callable[[], None] | None = getattr(session, "stop", None)
    if end is not None:
        end()
    return end is not None


Ready = Callable[[Sequence[str] | None], Feeds]
"""A run whose inputs are on the device: call it once, for all outputs or those named."""


def stage(session: Session, feeds: Feeds) -> Ready:
    """Copy inputs to the session's device ahead of their run, if the session supports it, and return the run.

    A session that does has a method `stage`, and must allow for two batches: one running and one staged.
    """
    ahead: Callable[[Feeds], Ready] | None = getattr(session, "stage", None)
    return ahead(feeds) if ahead is not None else functools.partial(session.run, feeds)
