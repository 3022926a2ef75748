"""What every runtime offers: a Session on a Device."""

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
    """Where a model runs: `cpu`, or `cuda` with the index of the GPU."""

    kind: str = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> Device:
        """A device from `cpu`, `cuda` or `cuda:1`; InputError for anything else."""
        match = re.fullmatch(r"(cpu)|(cuda)(?::(\d+))?", text.strip().lower())
        if not match:
            raise InputError(f"unknown device `{text}`", hint="use cpu, cuda or cuda:N")
        return cls() if match[1] else cls("cuda", int(match[3] or 0))


CPU = Device()


class Session(Protocol):
    """A loaded model. `run` is safe to call from several threads."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def device(self) -> Device: ...

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        """The outputs (all, or those named) for one set of inputs; InferenceError when the runtime fails."""
        ...


def stop(session: Session) -> bool:
    """Let the runs of a session that are under way end early, with StoppedError; whether it can do that at all.

    A session that can has a method `stop`, which any thread may call; a run ends once its current node has.
    """
    end: Callable[[], None] | None = getattr(session, "stop", None)
    if end is not None:
        end()
    return end is not None


Ready = Callable[[Sequence[str] | None], Feeds]
"""A run whose inputs are in place: gives the outputs (all, or those named), once."""


def stage(session: Session, feeds: Feeds) -> Ready:
    """Send inputs to the session's device ahead of their run, where it can take them; what runs it on them, once.

    A session that can has a method `stage`; it must allow for two batches under way, one running and one ahead.
    """
    ahead: Callable[[Feeds], Ready] | None = getattr(session, "stage", None)
    return ahead(feeds) if ahead is not None else functools.partial(session.run, feeds)
