"""Find inner tensors that feel the padding of a row, although no output shows it.

A mean over all positions may answer for rows with a rare token only. It is computed for every row, so that it shows the
padding even if no sample has that token. Where a tensor has places for the padding, those of the row itself are compared.
"""

from __future__ import annotations

import onnx_ir as ir

from demi.accuracy.compare import relative_l2
from demi.calibration.observe import probing
from demi.exporter.batching.row_values import row_values
from demi.tensors import Array, Feeds

SAME = 1e-3
"""Relative L2 within which an inner tensor counts as equal: other lengths are summed in another order."""


def feels_padding(model: ir.Model, row: Feeds, padded: Feeds, lengths: tuple[int, int]) -> str:
    """Return an inner tensor of a prepared FP32 model that differs with padding; empty if there is none.

    `lengths` are those of the padded axis in both rows. DemiError where the model's inner tensors cannot be read.
    """
    from_rows = row_values(model)
    with probing(model) as probe:
        for chunk in probe.chunks([name for name in probe.names if name in from_rows]):
            short, long = probe.run(row, chunk), probe.run(padded, chunk)
            for name in chunk:
                if _differs(short[name], long[name], lengths):
                    return name
    return ""


def _differs(short: Array, long: Array, lengths: tuple[int, int]) -> bool:
    """Return True if the places of the row itself differ; tensors that grow in another way than the axis are not compared."""
    if short.ndim != long.ndim or not short.size:
        return False
    sizes = list(zip(short.shape, long.shape, strict=True))
    if any(one != other and (one, other) != lengths for one, other in sizes):
        return False
    window = tuple(slice(one) for one, _ in sizes)
    return not relative_l2(short, long[window]) <= SAME
