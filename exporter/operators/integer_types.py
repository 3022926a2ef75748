"""The sets of integer types that rules ask for."""

from __future__ import annotations

import onnx_ir as ir

WIDE_INTEGERS = frozenset(
    {
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
    }
)
"""Integers that may exceed what half holds exactly. Those of 8 bits, such as pixels, are all exact in FP16 and BF16."""

INTEGERS = WIDE_INTEGERS | {ir.DataType.INT8, ir.DataType.UINT8}
"""Integers of every width: without measurements, one of 8 bits may be the start of a count that grows."""

INTEGERS_AND_BOOL = INTEGERS | {ir.DataType.BOOL}
"""Types of the result of a decision: an index, a count or a choice."""
