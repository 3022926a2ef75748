"""Runtimes for tests of proofs: a correct and fast one, and several that fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

import numpy as np

from demi.bundles.bundle import Bundle
from demi.errors import SourceError
from demi.processes.recorder import doing
from demi.proofs.record import Road
from demi.runtime.base import CPU, Device, Session
from demi.runtime.onnxruntime.session import open_session
from demi.runtime.openvino.executed import Executed
from demi.tensors import Feeds, TensorSpec

RIGHT, WRONG, NEARLY, HANGS, DIES, DIES_RUNNING, REFUSES, NAN = (
    f"tests.demi.proofs.runtimes:{name}"
    for name in ("right", "wrong", "nearly", "hangs", "dies", "dies_running", "refuses", "nan")
)
SLOW = "tests.demi.proofs.runtimes:slow"
WRONG_BY_ROAD = "tests.demi.proofs.runtimes:wrong_by_road"
SLOW_TOGETHER, DIES_TOGETHER = (f"tests.demi.proofs.runtimes:{name}" for name in ("slow_together", "dies_together"))


class Scaled:
    """A session that returns the reference's outputs, times a factor."""

    executed = (Executed("FullyConnected", "bf16", "brgemm_avx512_amx_bf16", 2),)

    def __init__(self, bundle: Bundle, factor: float) -> None:
        assert bundle.reference_path is not None
        self._session = open_session(bundle.reference_path)
        self._factor = np.float32(factor)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._session.outputs

    @property
    def device(self) -> Device:
        return CPU

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        return {name: array * self._factor for name, array in self._session.run(feeds, outputs).items()}


def right(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Return correct outputs."""
    return [Scaled(bundle, 1.0) for _ in range(count)]


def slow(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Right, and hopelessly slow."""
    session = Scaled(bundle, 1.0)
    run = session.run

    def run_slowly(feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        time.sleep(0.02)
        return run(feeds, outputs)

    session.run = run_slowly  # type: ignore[method-assign]
    return [session]


def wrong(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Return twice the correct outputs."""
    return [Scaled(bundle, 2.0)]


def nearly(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Return outputs that are wrong by twice the budget."""
    return [Scaled(bundle, 1.02)]


def nan(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Return NaN."""
    return [Scaled(bundle, float("nan"))]


def wrong_by_road(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Return wrong outputs for the half model and correct ones for the reference."""
    return [Scaled(bundle, 1.0 if road.file == "reference.onnx" else 9.0)]


def slow_together(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Take 5 ms for each road, but for the half model 50 ms where the reference is open in the same process."""
    return [_together(bundle, road, lambda: time.sleep(0.05))]


def dies_together(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Take 5 ms for each road, and crash in the half model where the reference is open in the same process."""
    return [_together(bundle, road, lambda: os.kill(os.getpid(), signal.SIGILL))]


_open: set[str] = set()


def _together(bundle: Bundle, road: Road, then: Callable[[], object]) -> Session:
    """Return a session that is wrong by twice the budget for the half model, and right for the reference."""
    _open.add(road.file)
    session = Scaled(bundle, 1.0 if road.file == "reference.onnx" else 1.02)
    run = session.run

    def run_slowly(feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        time.sleep(0.005)
        if road.file == "model.onnx" and "reference.onnx" in _open:
            then()
        return run(feeds, outputs)

    session.run = run_slowly  # type: ignore[method-assign]
    return session


def refuses(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Refuse the model."""
    raise SourceError("no such operator")


def hangs(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Never return."""
    time.sleep(100)
    raise AssertionError


def dies(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Crash by a division by zero during compilation."""
    with doing("compiling"):
        os.kill(os.getpid(), signal.SIGFPE)
    raise AssertionError


def dies_running(bundle: Bundle, road: Road, threads: int, count: int) -> list[Session]:
    """Crash by an instruction that the CPU does not have."""
    session = Scaled(bundle, 1.0)
    session.run = lambda *_: os.kill(os.getpid(), signal.SIGILL)  # type: ignore[method-assign, assignment]
    return [session]
