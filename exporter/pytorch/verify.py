"""The exported model beside the module it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from calibration.sessions import PROTOBUF_LIMIT, session_for, weight_bytes
from demi.compare import relative_l2
from demi.errors import SourceError
from demi.tensors import Feeds
from exporter.pytorch.example import Example

EXPORT_TOLERANCE = 1e-4
"""Relative L2 allowed between PyTorch and the ONNX model made from it: float32 in another order of summation."""


def verify(model: ir.Model, module: Any, example: Example, feeds: Feeds, path: Path) -> float:
    """The largest relative L2 of an output between ONNX and PyTorch; SourceError beyond `EXPORT_TOLERANCE`."""
    with torch.no_grad():
        expected = module(*example.args, **example.kwargs)
    leaves = [
        leaf.detach().cpu().numpy()
        for leaf in torch.utils._pytree.tree_leaves(expected)
        if isinstance(leaf, torch.Tensor)
    ]
    onnx.checker.check_model(ir.to_proto(model)) if _fits_protobuf(model) else None
    with session_for(model) as session:
        got = list(session.run(feeds).values())
    if len(leaves) != len(got):
        raise SourceError(f"PyTorch returns {len(leaves)} tensors, the ONNX model {len(got)}", where=str(path))
    errors = [relative_l2(want, have) for want, have in zip(leaves, got, strict=True)]
    worst = max(errors, default=0.0)
    if not worst <= EXPORT_TOLERANCE:
        name = model.graph.outputs[errors.index(worst)].name
        raise SourceError(
            f"the exported ONNX model differs from PyTorch: output `{name}` by {worst:.2g} relative L2 (at most {EXPORT_TOLERANCE:g})",
            where=str(path),
            hint="is the model in eval mode, and free of randomness?",
        )
    return worst


def _fits_protobuf(model: ir.Model) -> bool:
    return weight_bytes(model) <= PROTOBUF_LIMIT


def output_names(module: Any, example: Example, count: int) -> tuple[str, ...]:
    """Names people expect: the keys of a dict, else `output`, or `output_0`, `output_1`..."""
    with torch.no_grad():
        expected = module(*example.args, **example.kwargs)
    if isinstance(expected, Mapping) and len(expected) == count:
        return tuple(str(key) for key in expected)
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))
