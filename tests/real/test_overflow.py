"""The failure at the beginning of README.md: an FP16 overflow that a CPU check does not find."""

from __future__ import annotations

import msgspec
import pytest

from examples.overflow import measure, samples

pytestmark = pytest.mark.slow


def test_an_overflow_that_only_the_emulator_finds():
    """All in FP16, ONNX Runtime on the CPU is within 1e-3 of FP32; emulated, every output is 0."""
    cpu, gpu, largest = measure(samples())

    assert cpu < 1e-3
    assert 1 == pytest.approx(gpu)
    assert 0 == largest


def test_the_export_rescales_what_overflows(tour):
    """The square, its mean and what follows up to the root fit since the weight is smaller: nothing stays in FP32."""
    plan = msgspec.json.decode(tour.made("models/overflow/1/plan.json").read_bytes())
    precisions = {decision["node"]: decision["precision"] for decision in plan["decisions"]}

    assert {"half"} == set(precisions.values())
    assert {"square", "mean", "add_epsilon", "root"} == {
        decision["node"] for decision in plan["decisions"] if decision["reason"] == "rescaled"
    }
