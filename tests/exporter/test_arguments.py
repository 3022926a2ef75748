"""Arguments that the Python API refuses: each with an InputError in terms of the caller, never a raw exception."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from demi.errors import InputError, OverBudgetError
from demi.exporter.api import convert
from tests.models import MLP, parse

X = {"x": np.ones((2, 4), np.float32)}


def model() -> onnx.ModelProto:
    """Two layers."""
    return ir.to_proto(parse(MLP))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": X}, "one set of inputs, not a list"),
        ({"samples": 3}, "`samples` is a int"),
        ({"samples": [np.ones(4)]}, "`samples` is a ndarray"),
        ({"budget": "relative_l2=1e-2"}, "`budget` is a str"),
        ({"plan": {"schema": 1}}, "`plan` is a dict"),
        ({"precision": "fp32"}, "unknown precision `fp32`"),
        ({"precision": 16}, "`precision` is a int"),
        ({"samples": [{"x": [[1.0], [1.0, 2.0]]}]}, "for `x` cannot become an array"),
        ({"samples": [{"x": torch.ones(2, 4, requires_grad=True)}]}, "for `x` cannot become an array"),
        ({"search_seconds": -1}, "`search_seconds` is -1, not a number >= 0"),
        ({"search_seconds": float("nan")}, "`search_seconds` is nan"),
        ({"search_seconds": "1"}, "`search_seconds` is a str"),
        ({"seed": -1}, "`seed` is -1, not a whole number >= 0"),
        ({"seed": 1.5}, "`seed` is a float"),
        ({"calibrate": "no"}, "`calibrate` is a str, not True or False"),
        ({"keep_io_types": None}, "`keep_io_types` is a NoneType"),
        ({"step": None}, "`step` is a NoneType"),
        ({"keep_fp32": 7}, "`keep_fp32` is a int"),
        ({"force_half": [b"first"]}, "`force_half` is a bytes"),
        ({"keep_fp32": "sixth"}, "matches no node"),
        ({"keep_fp32": "sixth", "verify": False}, "matches no node"),
        ({"keep_fp32": "fir*", "force_half": ["MatMul"]}, r"`first` is requested in FP32 \(`--keep-fp32 fir\*`\)"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str):
    """The argument is named, with what is wrong about it."""
    with pytest.raises(InputError, match=message):
        convert(model(), **arguments)


def test_a_path_is_no_model():
    """A file is for another function, which the message names."""
    with pytest.raises(InputError, match="convert_file"):
        convert("model.onnx")  # type: ignore[arg-type]


def test_a_single_string_is_one_pattern():
    """Not a row of letters."""
    plan = convert(model(), [X], keep_fp32="first").plan

    assert ["first"] == [name for name, decision in plan.decisions.items() if decision.reason.value == "pinned"]


def test_keep_and_force_of_other_nodes_go_together():
    """Two controls that do not meet are both obeyed."""
    plan = convert(model(), [X], keep_fp32="first", force_half="second").plan

    assert (False, True) == (plan["first"].is_half, plan["second"].is_half)


@pytest.mark.parametrize("calibrate", [True, False])
def test_forced_node_has_objections_as_evidence(calibrate: bool):
    """A forced node is not called safe; the objections are its evidence."""
    source = "m (float[n] x) => (float[n] y) <float e = {0.000000000001}> { [least] p = Max(x, e) [it] y = Sigmoid(p) }"
    plan = convert(
        ir.to_proto(parse(source)), [{"x": np.float32([1.0, -2.0])}], force_half="*", calibrate=calibrate
    ).plan

    assert {"pinned"} == {decision.reason.value for decision in plan.decisions.values()}
    assert "--force-half, against vanishing-constant: `e` is 1e-12, which is 0 in fp16" == plan["least"].evidence


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [({"calibrate": False}, "leave --no-calibrate out"), ({"keep_io_types": False}, "leave --half-io out")],
)
def test_the_hint_names_what_can_be_turned(arguments: dict[str, Any], hint: str):
    """Beyond the budget the way out depends on how one came there."""
    big = "m (float[n] x) => (float[n] y) <float k = {0.5}, float z = {3.0}> { p = Add(x, z) y = Mul(p, k) }"
    with pytest.raises(OverBudgetError) as caught:
        convert(ir.to_proto(parse(big)), [{"x": np.float32([1e6, 1.0])}], **arguments)

    assert caught.value.hint is not None
    assert hint in caught.value.hint
