"""Small stand-ins that behave, for tests that need no real runtime."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence

from demi.errors import InferenceError
from demi.runtime.base import CPU, Device
from demi.tensors import Feeds, TensorSpec, check_feeds


class FakeSession:
    """A Session that computes `answer(feeds)`, checks its feeds, and remembers the shapes it was asked for."""

    device: Device = CPU

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        answer: Callable[[Feeds], Feeds],
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.answer = answer
        self.asked: list[Feeds] = []

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        self.asked.append(check_feeds(self.inputs, feeds))
        answers = self.answer(feeds)
        if set(answers) != {spec.name for spec in self.outputs}:
            raise InferenceError(f"the fake answers {sorted(answers)}")
        return {name: answers[name] for name in outputs or answers}


def versions_of(installed: dict[str, str]) -> Callable[[str], str]:
    """A fake of `importlib.metadata.version` for a machine that has these packages alone."""

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    return version
