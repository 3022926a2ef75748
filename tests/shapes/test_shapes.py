"""Networks as they are in the field, by their shapes: every one is exported and comes out nearly all in half.

The weights are random and the layers few; what is real is the operators and how torch's exporter strings them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bench.shapes import GRAPHS, SHAPES
from demi.calibration.sessions import session_for
from tests.shapes.cases import Case, half_share, make_case

MOSTLY_HALF = 0.9
"""The least share of the nodes that sum products which is half."""

LESS_HALF = {
    # A value that half moves across a step of QuantizeLinear moves by the whole step: what feeds it stays FP32.
    "quantized": 0.5,
    # All of it feeds a NonMaxSuppression whose boxes and scores are close: another box would be an altogether wrong one.
    "detector": 0.0,
}
"""The least share for shapes that may be less than `MOSTLY_HALF`, each with its why."""

QUICK = {"bert", "resnet", "lstm", *GRAPHS}
"""Names of the shapes in `make test`: a transformer, a convolutional and a recurrent one; `make nightly` has the others."""

PREDICTION = 0.25
"""Largest distance of the predicted error from the emulated one on the planning sets, as a share of it."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the exported files, each made once."""
    return tmp_path_factory.mktemp("shapes")


def _each(names: Iterable[str]) -> list[object]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly) for name in names]


@pytest.fixture(scope="module", params=_each([*SHAPES, *GRAPHS]))
def case(request: pytest.FixtureRequest, exports: Path) -> Case:
    """Each shape in turn, converted to mixed fp16."""
    return make_case(request.param, exports)


def test_unseen_inputs_are_answered_within_a_hundredth(case: Case):
    """The error on inputs that planning never saw is at most 1e-2 for every output, and integers are equal."""
    assert [] == case.comparison.failures()
    assert 1e-2 >= case.comparison.worst.relative_l2


def test_nothing_becomes_nan_or_infinite(case: Case):
    """ONNX Runtime loads the half model itself, and its own half kernels answer with finite numbers."""
    with session_for(ir.from_proto(case.converted.model)) as session:
        answers = [session.run(feeds) for feeds in case.unseen]

    assert all(np.all(np.isfinite(array)) for answer in answers for array in answer.values())
    assert 0 == sum(diff.non_finite for diff in case.comparison.outputs)


def test_the_converted_model_is_valid(case: Case):
    """The ONNX checker passes it, types and shapes included."""
    onnx.checker.check_model(case.converted.model, full_check=True)


def test_public_names_and_types_stay(case: Case):
    """Inputs and outputs have the names, order, types and shapes they had, and what the exporter wrote on them."""
    before, after = case.original.graph, case.converted.model.graph

    assert list(before.input) == list(after.input)
    assert list(before.output) == list(after.output)


def test_nearly_all_products_are_half(case: Case):
    """At least nine in ten nodes that sum products are half, but for shapes with a reason."""
    assert LESS_HALF.get(case.name, MOSTLY_HALF) <= half_share(case.converted.model)


def test_the_original_has_no_half(case: Case):
    """The share that the test before this one asks for is not there to begin with."""
    assert 0 == half_share(case.original)


def test_the_predicted_error_is_the_emulated_one(case: Case):
    """The predicted error of each output is within a quarter of the measured one."""
    assert case.converted.comparison is not None
    emulated = {diff.output: diff.relative_l2 for diff in case.converted.comparison.outputs}

    assert pytest.approx(emulated, rel=PREDICTION) == dict(case.converted.planned.predicted)


@pytest.mark.parametrize("name", _each(["whisper_decoder", "clip"]))
def test_bf16_is_within_its_budget(name: str, exports: Path):
    """With eight bits of mantissa the plan gives some nodes up, and the answers are within a hundredth all the same."""
    case = make_case(name, exports, "bf16")

    assert [] == case.comparison.failures()
    assert 0.5 < half_share(case.converted.model)
    onnx.checker.check_model(case.converted.model, full_check=True)
