"""A compiled model is compiled again after a failed run, and only then."""

from __future__ import annotations

import numpy as np
import pytest

from demi.errors import InferenceError, StoppedError
from demi.runtime.openvino.compiled import Compiled, Run


class Request:
    """Request that returns the given answer, or raises the given error."""

    def __init__(self, model: Model) -> None:
        self.model, self.sent, self.cancelled = model, 0, False

    def start_async(self) -> None: ...

    def wait(self) -> None:
        self.model.during(self)
        if self.cancelled:
            raise RuntimeError("Infer Request was canceled")
        if self.sent < 0:
            raise RuntimeError("Exception from src/a.cpp:1: negative")

    def cancel(self) -> None:
        self.cancelled = True


class Model:
    """Result of `compile_model`; `during` is called while a request runs."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.during = lambda request: None

    def create_infer_request(self) -> Request:
        self.requests.append(Request(self))
        return self.requests[-1]


def compiled(*, keeps_shapes: bool = True, streams: int = 1) -> Compiled:
    return Compiled(Model, streams, keeps_shapes=keeps_shapes)


def ask(model: Compiled, value: int, run: Run | None = None) -> int:
    def send(request: Request) -> None:
        request.sent = value

    return int(model.run(run or Run(), send, lambda request: {"y": np.array(request.sent)})["y"])


def test_requests_are_used_again():
    """Sequential runs share one request."""
    model = compiled()

    assert ([1, 2, 3], 1, 0) == (
        [ask(model, value) for value in (1, 2, 3)],
        len(model.model.requests),
        model.generation,
    )


@pytest.mark.parametrize(("keeps_shapes", "expected"), [(True, 1), (False, 0)])
def test_a_failed_run(keeps_shapes, expected):
    """A failed run affects later ones if the model caches shapes between runs, so that it is compiled again."""
    model = compiled(keeps_shapes=keeps_shapes)
    with pytest.raises(InferenceError, match="OpenVINO failed: negative"):
        ask(model, -1)

    assert (5, expected) == (ask(model, 5), model.generation)


def test_a_stopped_run():
    """A stopped run raises StoppedError, and the model is compiled again."""
    model, run = compiled(), Run()
    model.model.during = lambda request: run.stop()
    with pytest.raises(StoppedError):
        ask(model, 5, run)

    assert (6, 1) == (ask(model, 6), model.generation)


def test_a_run_beside_one_that_failed():
    """A run beside a failed one may have used its state, so that it is repeated."""
    model = compiled(streams=2)
    seen: list[int] = []

    def during(request: Request) -> None:
        seen.append(request.sent)
        if request.sent == 7:
            with pytest.raises(InferenceError):
                ask(model, -1)

    model.model.during = during

    assert (7, 1, [7, -1]) == (ask(model, 7), model.generation, seen)
