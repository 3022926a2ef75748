"""Rescaled models in half on this CPU: every product computes in FP16, within the budget."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from demi.accuracy.budget import Budget
from demi.accuracy.compare import compare
from demi.calibration.sessions import session_for
from demi.exporter.api import convert
from demi.exporter.rescaling.rescale import AS_WRITTEN
from demi.runtime.openvino.capability import read_cpu
from demi.runtime.openvino.executed import products_in
from tests.exporter.rescaling.planted import PLANTED

needs_half = pytest.mark.skipif(
    "avx512_fp16" not in read_cpu().flags, reason="this CPU does not compute in FP16 (AVX512-FP16)"
)


@needs_half
@pytest.mark.parametrize("name", PLANTED)
def test_a_rescaled_model_runs_in_half(name: str):
    """On inputs that the planner did not see: all products are FP16, and the error is within the export's budget."""
    openvino = pytest.importorskip("demi.runtime.openvino.session")
    from demi.runtime.openvino.options import OvSettings

    hard = PLANTED[name]()
    found = convert(hard.model, hard.calibration)
    session = openvino.open_session(found.model.SerializeToString(), OvSettings(hint="dynamic"))
    with session_for(ir.from_proto(hard.model), settings=AS_WRITTEN) as reference:
        wanted = [reference.run(feeds) for feeds in hard.evaluation]
    got = [session.run(feeds) for feeds in hard.evaluation]

    comparison = compare(wanted, got, Budget())
    half, every = products_in(session.executed, "f16")
    assert comparison, comparison.failures()
    assert half == every > 0
