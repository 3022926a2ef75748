"""Every operator and small-model case that the installed ONNX package carries, with everything possible in half.

None crashes, none fails ONNX's checker or ONNX Runtime's load, none changes public names or types, and the results agree
within half's tolerance wherever the original can be run. What cannot agree is in `EXCEPTIONS`, each with its reason.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node
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


MODULES = sorted(
    module.name for module in pkgutil.walk_packages(node.__path__, f"{node.__name__}.") if not module.ispkg
)
"""Modules of operator cases, a few for each operator. Importing one builds its cases; all together take ten seconds."""

LONG = {"attention", "softmax_cross_entropy_loss"}
"""Modules with a quarter of all time: hundreds of cases that differ in their optional inputs."""

STORED = {
    case.name: case
    for kind in ("simple", "pytorch-converted", "pytorch-operator")
    for case in load_model_tests(kind=kind)
}
"""Small models stored as files, by name."""


@functools.cache
def cases_of(module: str) -> list[Any]:
    """Return the cases that importing a module has built."""
    built = len(node._NodeTestCases)
    importlib.import_module(module)
    return node._NodeTestCases[built:]


def load(case: Any) -> onnx.ModelProto:
    """Return the case's model."""
    return case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession | None:
    """Open a session; return None when ONNX Runtime has no kernel for the original."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None


def public(values: Any) -> list[tuple[str, bytes]]:
    """Return names and types of inputs or outputs."""
    return [(value.name, value.type.SerializeToString(deterministic=True)) for value in values]


def free_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs without the weights, which files of an IR version before 4 had to list among them."""
    weights = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    return [value for value in model.graph.input if value.name not in weights]


def half(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Convert a model with everything possible in half."""
    return convert(model, precision=precision, calibrate=False, force_half=["*"], verify=False).model


def feeds_of(case: Any, model: onnx.ModelProto) -> dict[str, Any] | None:
    """Return the case's first set of inputs; None unless all are tensors."""
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


def agree(want: Any, got: Any, tolerance: float = TOLERANCE) -> bool:
    """Return whether two results agree within half's tolerance; integers, booleans and strings must be equal."""
    if isinstance(want, list):
        if not isinstance(got, list) or len(want) != len(got):
            return False
        return all(agree(*pair, tolerance) for pair in zip(want, got, strict=True))
    if want is None or not isinstance(want, np.ndarray):
        return bool(np.all(want == got))
    if want.shape != np.shape(got):
        return False
    if want.dtype.kind != "f":
        return bool(np.array_equal(want, got))
    finite = np.isfinite(want) & np.isfinite(got)
    scale = max(float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0)), 1e-3)
    near = np.abs(np.where(finite, want, 0).astype(np.float64) - np.where(finite, got, 0)) <= tolerance * scale
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    return bool(np.all(np.where(finite, near, same)))


def check_case(case: Any, precision: str, tolerance: float = TOLERANCE) -> None:
    """Assert that a case converts to a valid model with the same public names and types, and the same results."""
    model = load(case)
    converted = half(model, precision)
    if case.name not in INVALID:
        onnx.checker.check_model(converted, full_check=True)
    assert public(free_inputs(model)) == public(converted.graph.input)
    assert public(model.graph.output) == public(converted.graph.output)
    original = session(model)
    if original is None:
        return
    if precision == "fp16":
        assert session(converted) is not None, "ONNX Runtime loads the original, but not the converted model"
    feeds = feeds_of(case, model)
    if feeds is None or case.name in EXCEPTIONS:
        return
    try:
        want = original.run(None, feeds)
    except Exception:
        return  # the original cannot be run here
    emulated = session(ir.to_proto(widen(ir.from_proto(converted), kernels=False)))
    assert emulated is not None, "ONNX Runtime loads the original, but not the emulated model"
    assert agree(want, emulated.run(None, feeds), tolerance)


def _modules() -> list[object]:
    """Return every module of operator cases in both formats; `make test` runs FP16 without the longest ones."""
    return [
        pytest.param(module, precision, id=f"{name}-{precision}", marks=pytest.mark.nightly if later else ())
        for module in MODULES
        for name in [module.removeprefix(f"{node.__name__}.")]
        for precision in ("fp16", "bf16")
        for later in [precision == "bf16" or name in LONG]
    ]


@pytest.mark.parametrize(("module", "precision"), _modules())
@pytest.mark.filterwarnings("ignore")
def test_operator_cases_convert(module: str, precision: str, subtests: pytest.Subtests) -> None:
    """Every case of an operator converts to a valid model with the same public names and types, and the same results."""
    for case in cases_of(module):
        with subtests.test(case.name):
            check_case(case, precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", STORED)
@pytest.mark.filterwarnings("ignore")
def test_stored_models_convert(name: str, precision: str) -> None:
    """Every stored model converts to a valid model with the same public names and types, and the same results."""
    check_case(STORED[name], precision)


@pytest.mark.filterwarnings("ignore")
def test_exceptions_are_few() -> None:
    """At most one case in a hundred is an exception, each one exists, and no case that the package carries is left out."""
    names = [case.name for module in MODULES for case in cases_of(module)]

    assert sorted(names) == sorted(case.name for case in load_model_tests(kind="node"))
    assert len(EXCEPTIONS) + len(INVALID) <= len({*names, *STORED}) / 100
    assert {*EXCEPTIONS, *INVALID} <= {*names, *STORED}


def test_check_sees_a_difference() -> None:
    """A case fails whose results in half differ by more than the tolerance."""
    (case,) = (case for case in cases_of(f"{node.__name__}.sigmoid") if case.name == "test_sigmoid")

    with pytest.raises(AssertionError):
        check_case(case, "fp16", tolerance=0.0)


def test_disagreement_is_seen() -> None:
    """A result that is off by more than the tolerance, of another shape, or a wrong integer, does not agree."""
    assert agree(np.float32([1, 2]), np.float32([1.001, 2]))
    assert not agree(np.float32([1, 2]), np.float32([1.1, 2]))
    assert not agree(np.float32([1, 2]), np.float32([[1, 2]]))
    assert not agree(np.int64([1, 2]), np.int64([1, 3]))
    assert not agree(np.float32([1, 2]), np.float32([1, np.nan]))
