"""Patterns that name nodes: one that fits none is told."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from demi.errors import InputError
from exporter import convert

MODEL = (
    '<ir_version: 9, opset_import: ["" : 18]> m (float[n] x) => (float[n] y) { [first] h = Exp(x) [last] y = Neg(h) }'
)


@pytest.mark.parametrize(("option", "flag"), [("keep_fp32", "--keep-fp32"), ("force_half", "--force-half")])
@pytest.mark.parametrize("calibrate", [True, False])
def test_pattern_that_fits_nothing(option: str, flag: str, calibrate: bool):
    """A name with a slip is an error that offers the nearest names."""
    with pytest.raises(InputError, match=f"`{flag} frist` fits no node") as caught:
        convert(ir.to_proto(ir.from_onnx_text(MODEL)), calibrate=calibrate, **{option: ["frist"]})
    assert "`first`" in str(caught.value.hint)


@pytest.mark.parametrize("pattern", ["first", "fir*", "Exp"])
def test_pattern_that_fits(pattern: str):
    """A name, a glob and an operator type are taken."""
    plan = convert(ir.to_proto(ir.from_onnx_text(MODEL)), keep_fp32=[pattern]).plan

    assert not plan["first"].is_half
