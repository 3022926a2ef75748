"""Compare the exported model with the module it was made from."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from demi.accuracy.compare import relative_l2
from demi.calibration.random_draws import random_nodes
from demi.calibration.sessions import PROTOBUF_LIMIT, session_for, weight_bytes
from demi.errors import SourceError
from demi.exporter.pytorch.example import Example, as_numpy
from demi.exporter.pytorch.input_dtypes import call, map_tensors
from demi.float16 import BF16, FP16
from demi.tensors import Array, Feeds

EXPORT_TOLERANCE = 1e-4
"""Relative L2 allowed between PyTorch and the ONNX model made from it: float32 in another order of summation."""

HALF_TOLERANCES = {ir.DataType.FLOAT16: 4 * FP16.epsilon, ir.DataType.BFLOAT16: 4 * BF16.epsilon}
"""The same for a model with half tensors: ONNX Runtime computes them in FP32 on a CPU, and rounds less."""

FP64_FACTOR = 4.0
"""Factor by which the ONNX model may be farther from FP64 than PyTorch in FP32, for models beyond the tolerance."""


def verify(
    exported: ir.Model, model: ir.Model, module: Any, example: Example, feeds: Feeds, path: Path
) -> float | None:
    """Return the largest relative L2 of an output between PyTorch and `model`: `exported` with its weights in FP32.

    None where no output can be compared. Where the model draws random numbers, outputs that differ from run to run in
    PyTorch itself are left out. Raises SourceError beyond the tolerance, unless a run of PyTorch in FP64 shows that
    FP32 is no more accurate than that for this model.
    """
    expected = _answers(module, example, path)
    onnx.checker.check_model(ir.to_proto(model)) if _fits_protobuf(model) else None
    with session_for(model) as session:
        got = list(session.run(feeds).values())
    if any(np.iscomplexobj(array) for array in expected):
        raise SourceError(
            "the model returns complex numbers, for which ONNX has no operators",
            where=str(path),
            hint="return torch.view_as_real(...), whose last axis holds the real and the imaginary part",
        )
    if len(expected) != len(got):
        raise SourceError(f"PyTorch returns {len(expected)} tensors, the ONNX model {len(got)}", where=str(path))
    errors = [relative_l2(want, have) for want, have in zip(expected, got, strict=True)]
    allowed = _tolerance(exported)
    if any(not error <= allowed for error in errors) and _draws(model):
        again = _answers(module, example, path)
        noise = [not relative_l2(one, other) <= EXPORT_TOLERANCE for one, other in zip(expected, again, strict=True)]
        if all(noise):
            return None
        errors = [0.0 if drawn else error for drawn, error in zip(noise, errors, strict=True)]
    worst = max(errors, default=0.0)
    if not worst <= allowed and not _is_rounding(module, example, expected, got, path):
        name = model.graph.outputs[errors.index(worst)].name
        raise SourceError(
            f"the exported ONNX model differs from PyTorch: output `{name}` by {worst:.2g} relative L2 (at most {allowed:.2g})",
            where=str(path),
            hint=_hint(module, example, path),
        )
    return worst


def _hint(module: Any, example: Example, path: Path) -> str:
    """Return what to do about a difference: a call that changes buffers cannot be exported as it is."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    call(module, example, path)
    changed = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        return (
            f"every call changes the module's buffer `{changed[0]}`, and an ONNX model holds no state: take it as an "
            "input and return its new value, or do not change it in eval mode"
        )
    return (
        "check that the model is in eval mode and not random; if so, PyTorch's exporter leaves something out, such as a "
        "constant below 1e-16, or ONNX Runtime computes an operator differently: change that part, or export an .onnx "
        "yourself and compare it with PyTorch, since Demi cannot"
    )


def _draws(model: ir.Model) -> bool:
    """Return whether the model is random by design; a Dropout only means that it was left in training mode."""
    return any(node.op_type != "Dropout" for node in random_nodes(model))


def _tolerance(model: ir.Model) -> float:
    held = {value.dtype for node in model.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value}
    return max([EXPORT_TOLERANCE, *(allowed for kind, allowed in HALF_TOLERANCES.items() if kind in held)])


def _is_rounding(module: Any, example: Example, expected: Sequence[Array], got: Sequence[Array], path: Path) -> bool:
    """Return whether both sets of outputs are about equally far from FP64's: then the model amplifies FP32's rounding.

    False for a module whose outputs change from run to run.
    """
    again = _answers(module, example, path)
    if not all(relative_l2(one, other) <= EXPORT_TOLERANCE for one, other in zip(expected, again, strict=True)):
        return False
    try:
        exact = _answers(copy.deepcopy(module).double(), _in_double(example), path)
    except Exception:  # many modules run in FP32 only, and then nothing more is known
        return False
    return len(exact) == len(got) and all(
        relative_l2(want, have) <= EXPORT_TOLERANCE
        or relative_l2(true, have) <= FP64_FACTOR * relative_l2(true, want) < math.inf
        for want, have, true in zip(expected, got, exact, strict=True)
    )


def _answers(module: Any, example: Example, path: Path) -> list[Array]:
    """Return the tensors that a call returns, in order."""
    leaves = torch.utils._pytree.tree_leaves(call(module, example, path))
    return [as_numpy(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _in_double(example: Example) -> Example:
    args, kwargs = map_tensors(
        (example.args, example.kwargs), lambda tensor: tensor.double() if tensor.is_floating_point() else tensor
    )
    return replace(example, args=args, kwargs=kwargs)


def _fits_protobuf(model: ir.Model) -> bool:
    return weight_bytes(model) <= PROTOBUF_LIMIT


def output_names(module: Any, example: Example, count: int, path: Path) -> tuple[str, ...]:
    """Return the usual names: the keys of a dict, else `output`, or `output_0`, `output_1`..."""
    expected = call(module, example, path)
    if isinstance(expected, Mapping) and len(expected) == count:
        return tuple(str(key) for key in expected)
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))
