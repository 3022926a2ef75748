"""Proofs find runtimes that are wrong, hang or crash on a CPU before a model is served."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demi.accuracy.budget import Budget
from demi.accuracy.compare import compare
from demi.bundles.bundle import open_bundle
from demi.proofs.attempt import expected_error, time_sizes, why_too_near
from demi.proofs.prove import Proving, close_in_speed, is_needless, promise_of, proof_of, roads_of
from demi.proofs.record import FOLDER, Attempt, Proof, Road, Timing
from demi.runtime.openvino.capability import Cpu
from demi.runtime.openvino.session import openvino_version
from tests.demi.proofs import runtimes
from tests.server.bundles import GOLDEN_X, MIXED, SCALE, write_bundle

TYPED, HINTED = Road("model.onnx", "dynamic"), Road("reference.onnx", "bf16")
ISLANDS = replace(HINTED, islands=True)
CPU = Cpu("Xeon", 2, frozenset({"avx512_fp16"}))
AMX = Cpu("Xeon", 2, frozenset({"avx512_fp16", "amx_bf16"}))


@pytest.fixture
def path(tmp_path) -> Path:
    """Return a bundle with a reference and golden inputs."""
    return write_bundle(tmp_path / "b", MIXED, reference=SCALE, golden=GOLDEN_X)


def prove(path: Path, opener: str, limit_s: float = 60.0, *, anew: bool = False) -> Proof:
    proving = Proving(CPU, "2026.4.1", opener, limit_s, seconds=0.0)
    return proof_of(open_bundle(path), 1, path.parent / "key", proving, anew=anew)


def test_a_right_one(path):
    """The proof of a correct runtime has errors, times at each batch size, and the executed precisions."""
    best = prove(path, runtimes.RIGHT).best

    assert best is not None
    assert ({"y": 0.0}, 1) == (best.errors, best.timings[0].rows)
    assert all(timing.fp32_ms > 0 and timing.half_ms > 0 for timing in best.timings)
    assert runtimes.Scaled.executed == best.executed


@pytest.mark.parametrize(("speedups", "expected"), [([1.0, 3.0], [1, 8]), ([0.9, 3.0], [1, 8]), ([0.5, 3.0], [1])])
def test_half_that_is_hopelessly_slow(speedups, expected):
    """It must pay at every batch size, so that no other is timed."""
    known = dict(zip((1, 8), speedups, strict=True))

    assert expected == [timing.rows for timing in time_sizes((1, 8), lambda rows: Timing(rows, known[rows], 1.0))]


@pytest.mark.parametrize(
    ("opener", "limit_s", "why"),
    [
        (runtimes.WRONG, 60, "beyond the budget on the golden inputs: `y`: "),
        (runtimes.NAN, 60, "beyond the budget on the golden inputs: `y`:"),
        (runtimes.REFUSES, 60, "no such operator"),
        (runtimes.HANGS, 3, "the process hung while"),
        (runtimes.DIES, 60, "the process died with SIGFPE (signal 8) while trying model.onnx in dynamic, compiling"),
        (runtimes.DIES_RUNNING, 60, "the process died with SIGILL (signal 4)"),
    ],
    ids=["wrong", "nan", "refuses", "hangs", "dies", "dies running"],
)
def test_a_failing_runtime(path, opener, limit_s, why):
    """A failing runtime is never the best and does not pay; the verdict has the failure and the CPU."""
    proof = prove(path, opener, limit_s)

    assert (None, False) == (proof.best, proof.pays)
    assert why in proof.verdict()
    assert proof.cpu in proof.verdict()


@pytest.mark.parametrize(("opener", "timed"), [(runtimes.NEARLY, True), (runtimes.WRONG, False), (runtimes.NAN, False)])
def test_what_is_timed_though_it_is_refused(path, opener, timed):
    """An error that another plan could bring down does not hide how fast the way is."""
    for attempt in prove(path, opener).attempts:
        assert (False, timed) == (attempt.is_right, bool(attempt.timings))
        assert not timed or attempt.load == pytest.approx(2.0, rel=0.01)


def test_the_reference_in_half(path):
    """If the half model itself is wrong, the FP32 model computed in half may be correct."""
    proof = prove(path, runtimes.WRONG_BY_ROAD)

    assert proof.best is not None
    assert "reference.onnx" == proof.best.road.file
    assert proof.attempts[0].why.startswith("beyond the budget")


def test_roads_are_timed_beside_each_other(path):
    """Another second of a shared machine may be twice as fast, so the times that choose are of the same turns."""
    model, reference = prove(path, runtimes.SLOW_TOGETHER).attempts

    assert model.speedup < 0.5 * reference.speedup
    assert [each.fp32_ms for each in model.timings] == [each.fp32_ms for each in reference.timings]


def test_a_death_beside_another_road(path):
    """The times that each road had alone count."""
    model, reference = prove(path, runtimes.DIES_TOGETHER).attempts

    assert reference.is_right
    assert model.timings
    assert [each.fp32_ms for each in model.timings] != [each.fp32_ms for each in reference.timings]


@pytest.mark.parametrize(
    ("speedups", "right", "expected"),
    [
        ([3.0, 2.0, 1.4], [True, False, True], [3.0, 2.0]),
        ([1.0, 3.0], [True, True], [3.0]),
        ([3.0, 2.0], [False, False], []),
        ([], [], []),
    ],
    ids=["within a factor of two", "far apart", "none is right", "none"],
)
def test_which_roads_are_close(speedups, right, expected):
    """Whoever shares the machine may put roads within a factor of two in a wrong order."""
    attempts = [
        Attempt(TYPED, "" if each else "beyond the budget", timings=(Timing(1, speedup, 1.0),))
        for speedup, each in zip(speedups, right, strict=True)
    ]

    assert expected == [each.speedup for each in close_in_speed(attempts)]


def test_a_slow_one(path):
    """It is right and does not pay; the other road is not tried, since it cannot be so much faster."""
    proof = prove(path, runtimes.SLOW)

    assert proof.best is not None
    assert (1, [1], False) == (len(proof.attempts), [each.rows for each in proof.best.timings], proof.pays)


def test_a_proof_is_made_once(path):
    """An existing proof is reused; the runtime of the second call would be wrong."""
    first = prove(path, runtimes.RIGHT)
    second = prove(path, runtimes.WRONG)

    assert first.attempts == second.attempts
    assert 1 == len(list((path / FOLDER).glob("*.json")))


def test_a_proof_is_repeated_on_request(path):
    """A proof is made again on request."""
    prove(path, runtimes.RIGHT)

    assert prove(path, runtimes.WRONG, anew=True).best is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"golden": None}, "no golden inputs"),
        ({"reference": None}, "no FP32 reference"),
    ],
)
def test_missing_reference_or_golden_inputs(tmp_path, changes, why):
    """Without a reference or golden inputs no process is started, and the verdict says which is missing."""
    wanted = {"reference": SCALE, "golden": GOLDEN_X} | changes
    path = write_bundle(tmp_path / "b", MIXED, **wanted)

    proof = prove(path, runtimes.HANGS)

    assert (None, ()) == (proof.best, proof.attempts)
    assert why in proof.verdict()


@pytest.mark.parametrize(
    ("proving", "why"),
    [
        (Proving(CPU, None), "OpenVINO is not installed"),
        (Proving(Cpu("Old", 1, frozenset({"sse2"})), "2026.4.1"), "Old has no units for it"),
    ],
)
def test_missing_openvino_or_half_units(path, proving, why):
    """Without OpenVINO or half units no process is started."""
    proof = proof_of(open_bundle(path), 1, path.parent / "key", proving)

    assert (None, ()) == (proof.best, proof.attempts)
    assert why in proof.verdict()


@pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")
def test_openvino_itself(path):
    """OpenVINO on this CPU has small errors, or the verdict has the reason that it cannot be used."""
    proof = proof_of(open_bundle(path), 1, path.parent / "key", Proving(seconds=0.0))

    assert all(attempt.error < 1e-2 if attempt.is_right else attempt.why for attempt in proof.attempts)
    assert proof.attempts or proof.why_not
    assert np.isfinite([timing.speedup for attempt in proof.attempts for timing in attempt.timings]).all()


RIGHT = Attempt(TYPED, "", {"y": 0.0}, (Timing(1, 2.0, 1.0),))
SLOW = Attempt(TYPED, "", {"y": 0.0}, (Timing(1, 1.0, 2.0),))
WRONG = Attempt(HINTED, "beyond the budget")


@pytest.mark.parametrize(
    ("road", "attempts", "expected"),
    [
        (TYPED, (), False),
        (HINTED, (RIGHT,), False),
        (HINTED, (SLOW,), True),  # no other is so much faster that it would pay
        (HINTED, (replace(SLOW, why="beyond the budget"),), False),
        (ISLANDS, (RIGHT, replace(RIGHT, road=HINTED)), True),  # exceptions only make it slower
        (ISLANDS, (RIGHT, WRONG), False),
    ],
    ids=["first", "second", "hopeless", "hopeless and wrong", "right without islands", "wrong without islands"],
)
def test_which_ways_are_tried(road, attempts, expected):
    """A way is left out where earlier ones show that it cannot win."""
    assert expected is is_needless(road, attempts)


def test_islands_need_a_plan_with_fp32_nodes(path):
    """Without nodes that stay FP32 there are two ways to run a bundle in half."""
    assert [TYPED, Road("reference.onnx", "f16")] == list(roads_of(open_bundle(path)))


@pytest.mark.parametrize(
    ("errors", "right"),
    [
        ((0.0079,), True),
        ((0.0081,), False),
        ((0.0097, 0.0098, 0.0097), True),
        ((0.006, 0.009, 0.007, 0.008), False),
        ((0.004, 0.006), False),
    ],
    ids=["one set", "one set near the budget", "steady", "scattered", "two sets tell little"],
)
def test_half_without_a_plan_needs_a_margin(errors, right):
    """Another set of inputs must be expected to be within the budget, since no plan has left a margin for it."""
    y = {"y": np.ones(100, np.float32)}
    sets = [compare([y], [{"y": y["y"] * np.float32(1 + error)}], Budget()) for error in errors]

    assert right is not bool(why_too_near(HINTED, sets))
    assert "" == why_too_near(ISLANDS, sets)


def test_a_prediction_interval():
    """Of 20,000 series of four errors, the fifth stays below the bound in 95 of 100."""
    series = np.random.default_rng(0).normal(1.0, 0.1, (20_000, 5))
    below = [last <= expected_error(first) for *first, last in series.tolist()]

    assert 0.95 == pytest.approx(np.mean(below), abs=0.005)


def test_an_error_that_is_not_finite():
    """Nothing is expected of other inputs."""
    assert math.inf == expected_error([0.001, math.inf])


@pytest.mark.parametrize(
    ("opener", "expected"),
    [(runtimes.WRONG, True), (runtimes.RIGHT, True), (runtimes.DIES, False), (runtimes.REFUSES, False)],
    ids=["wrong", "right", "dies", "refuses"],
)
def test_what_another_format_promises(path, opener, expected):
    """It is how fast the whole model is in that format, whatever it answers; nothing where it fails."""
    promised = promise_of(open_bundle(path), "bf16", 1, Proving(AMX, "2026.4.1", opener, 60.0, seconds=0.0))

    assert expected is (promised > 0)


def test_a_format_without_units_promises_nothing(path):
    """Nothing is tried."""
    assert 0.0 == promise_of(open_bundle(path), "bf16", 1, Proving(CPU, "2026.4.1"))
