"""Every operator and small-model case that the installed ONNX package carries, with everything possible in half.

None crashes, none fails ONNX's checker or ONNX Runtime's load, none changes public names or types, and the results agree
within half's tolerance wherever the original can be run. What cannot agree is in `EXCEPTIONS`, each with its reason.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from demi.calibration.emulation.widen import widen
from demi.exporter import convert

onnxruntime.set_default_logger_severity(4)

_MIN = "shows the scores behind a causal mask of finfo.min, which is minus infinity in half"
_LARGE = "its inputs of 10,000 and 10,001 are one and the same number in half"
EXCEPTIONS: dict[str, str] = {
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal": _MIN,
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal": _MIN,
    "test_dynamicquantizelinear_expanded": "a rounded scale moves values across the middle between two integers",
    "test_logsoftmax_large_number": _LARGE,
    "test_logsoftmax_large_number_expanded": _LARGE,
    "test_logsoftmax_large_number_expanded_ver18": _LARGE,
    "test_softmax_large_number": _LARGE,
    "test_softmax_large_number_expanded": _LARGE,
    "test_softmax_large_number_expanded_ver18": _LARGE,
    "test_matmul_1d_3d": "sums that cancel: bfloat16's eight bits leave more than the tolerance",
    "test_reduce_prod_default_axes_keepdims_example": "12! is 479,001,600",
    "test_tan": "beside its pole, a rounded argument is another tangent",
}
"""Cases whose results may differ, each with its reason."""

INVALID = {"test_mvn": "the original fails the full check: a Constant inside MeanVarianceNormalization's function body"}
"""Cases that are not valid before conversion."""

TOLERANCE = 2e-2
"""Relative to the largest magnitude of an output: rounding of inputs and results, grown by the operator."""


@functools.cache
def cases() -> dict[str, Any]:
    """All cases by name."""
    kinds = ("node", "simple", "pytorch-converted", "pytorch-operator")
    return {case.name: case for kind in kinds for case in load_model_tests(kind=kind)}


def load(name: str) -> onnx.ModelProto:
    """The case's model."""
    case = cases()[name]
    return case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession | None:
    """A session, or None when ONNX Runtime has no kernel for the original."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None


def public(values: Any) -> list[tuple[str, bytes]]:
    """Names and types of inputs or outputs."""
    return [(value.name, value.type.SerializeToString(deterministic=True)) for value in values]


def taken(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs, without the weights that files of an IR version before 4 had to list among them."""
    weights = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    return [value for value in model.graph.input if value.name not in weights]


def half(name: str, precision: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The case's model and its conversion with everything possible in half."""
    model = load(name)
    return model, convert(model, precision=precision, calibrate=False, force_half=["*"], verify=False).model


def feeds_of(name: str, model: onnx.ModelProto) -> dict[str, Any] | None:
    """The case's first set of inputs, when all are tensors."""
    case = cases()[name]
    if case.data_sets:
        return dict(zip([value.name for value in model.graph.input], case.data_sets[0][0], strict=False))
    folder = Path(case.model_dir) / "test_data_set_0"
    feeds = {}
    for index, value in enumerate(model.graph.input):
        path = folder / f"input_{index}.pb"
        if not path.exists():
            break
        if not value.type.HasField("tensor_type"):
            return None
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
        feeds[value.name] = numpy_helper.to_array(tensor)
    return feeds


def agree(want: Any, got: Any) -> bool:
    """Whether two results are the same within half's tolerance: integers, booleans and strings exactly."""
    if isinstance(want, list):
        return isinstance(got, list) and len(want) == len(got) and all(map(agree, want, got))
    if want is None or not isinstance(want, np.ndarray):
        return bool(np.all(want == got))
    if want.shape != np.shape(got):
        return False
    if want.dtype.kind != "f":
        return bool(np.array_equal(want, got))
    finite = np.isfinite(want) & np.isfinite(got)
    scale = max(float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0)), 1e-3)
    near = np.abs(np.where(finite, want, 0).astype(np.float64) - np.where(finite, got, 0)) <= TOLERANCE * scale
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    return bool(np.all(np.where(finite, near, same)))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", cases())
def test_case(name: str, precision: str) -> None:
    """The case converts to a valid model with the same public names and types, and the same results."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, converted = half(name, precision)
        if name not in INVALID:
            onnx.checker.check_model(converted, full_check=True)
        assert public(taken(model)) == public(converted.graph.input)
        assert public(model.graph.output) == public(converted.graph.output)
        original = session(model)
        if original is None:
            return
        if precision == "fp16":
            assert session(converted) is not None, "ONNX Runtime loads the original, but not the converted model"
        feeds = feeds_of(name, model)
        if feeds is None or name in EXCEPTIONS:
            return
        try:
            want = original.run(None, feeds)
        except Exception:
            return  # the original cannot be run here
        emulated = session(ir.to_proto(widen(ir.from_proto(converted), kernels=False)))
        assert emulated is not None, "ONNX Runtime loads the original, but not the emulated model"
        assert all(map(agree, want, emulated.run(None, feeds)))


def test_exceptions_are_few() -> None:
    """At most one case in a hundred is an exception, and each one exists."""
    assert len(EXCEPTIONS) + len(INVALID) <= len(cases()) / 100
    assert {*EXCEPTIONS, *INVALID} <= cases().keys()


def test_disagreement_is_seen() -> None:
    """A result that is off by more than the tolerance, of another shape, or a wrong integer, does not agree."""
    assert agree(np.float32([1, 2]), np.float32([1.001, 2]))
    assert not agree(np.float32([1, 2]), np.float32([1.1, 2]))
    assert not agree(np.float32([1, 2]), np.float32([[1, 2]]))
    assert not agree(np.int64([1, 2]), np.int64([1, 3]))
    assert not agree(np.float32([1, 2]), np.float32([1, np.nan]))
