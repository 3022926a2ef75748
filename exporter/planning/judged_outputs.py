"""Complete the budget for a model's outputs: find the detectors, choices and quantized outputs among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from demi.accuracy.boxes import read_boxes
from demi.accuracy.budget import DEFAULT_BOXES, Budget, Limits
from demi.calibration.graph_pieces import subgraphs_of
from demi.errors import InputError
from demi.exporter.operators.schemas import is_float
from demi.exporter.planning.decisions import COMPARISONS
from demi.exporter.planning.detectors import MOVES, declared_detector, find_detectors
from demi.tensors import Feeds

CHOOSERS: Mapping[str, int] = {"ArgMax": 0, "ArgMin": 0, "TopK": 1, **dict.fromkeys(COMPARISONS, 0)}
"""Operators whose result is a choice, and the position of that output."""

AGREE = 0.99
"""Share of an output of choices that must stay the same, unless the budget sets it."""


STEPS = 8.0
"""Largest error of an element of an 8-bit quantized output, in steps, unless the budget sets it."""

WIDE = 8.0
"""Root mean square, in steps, from which a quantized output is judged in steps."""

QUANTIZED = frozenset({ir.DataType.UINT8, ir.DataType.INT8})


def budget_for(model: ir.Model, references: Sequence[Feeds], budget: Budget) -> Budget:
    """Complete the budget: add the detectors among the outputs, and the share of choices that may change.

    Raises InputError for limits of outputs that the model does not have, and for boxes where none are found.
    """
    budget.check_names(references[0])
    detectors = list(find_detectors(model, references))
    for name, limits in budget.outputs.items():
        if limits.boxes is not None and not any(name in detector.outputs for detector in detectors):
            detectors.append(declared_detector(name, model, references))
    if budget.default.boxes is not None and not detectors:
        raise InputError(
            "the budget limits boxes, but no output looks like a detector's",
            where=f"--budget boxes={budget.default.boxes:g}",
            hint="name the output that holds them, as in OUTPUT:boxes=0.01",
        )
    of_detectors = {name for detector in detectors for name in detector.outputs}
    judged = _with_steps(_with_choices(budget, model, of_detectors), model, references, of_detectors)
    judged = judged.with_detectors(detectors)
    return replace(judged, outputs=dict(judged.outputs) | _floors(budget, judged, references))


def _with_choices(budget: Budget, model: ir.Model, of_detectors: set[str]) -> Budget:
    """Allow outputs of choices to differ in a few elements: of two equally good results, either is right."""
    outputs = dict(budget.outputs)
    for value in model.graph.outputs:
        name = value.name or ""
        if name not in of_detectors and _is_choice(value) and budget.limits(name).agree is None:
            outputs[name] = outputs.get(name, Limits()).over(Limits(agree=AGREE))
    return replace(budget, outputs=outputs)


def _with_steps(budget: Budget, model: ir.Model, references: Sequence[Feeds], of_detectors: set[str]) -> Budget:
    """Allow outputs that are quantized numbers, such as a picture, to be a few steps off."""
    outputs = dict(budget.outputs)
    for value in model.graph.outputs:
        name = value.name or ""
        limits = budget.limits(name)
        if name in of_detectors or limits.agree is not None or limits.steps is not None or not _is_quantized(value):
            continue
        numbers = np.concatenate([feeds[name].ravel() for feeds in references]).astype(np.float64)
        if numbers.size and np.sqrt(np.mean(numbers * numbers)) >= WIDE:
            outputs[name] = outputs.get(name, Limits()).over(Limits(steps=STEPS))
    return replace(budget, outputs=outputs)


def _is_quantized(value: ir.Value) -> bool:
    """Return whether an 8-bit output is quantized from floats, and only moved afterwards."""
    if value.dtype not in QUANTIZED:
        return False
    while (node := value.producer()) is not None and node.op_type in MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        if is_float(value):
            return True
    return node is not None and node.op_type == "QuantizeLinear"


def _is_choice(value: ir.Value) -> bool:
    """Return whether an output of integers or booleans is a choice, made in a body or outside, and only moved afterwards."""
    while (node := value.producer()) is not None and node.op_type in MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
    if node is None:
        return False
    inner = [_end_of(body, node, value) for body in subgraphs_of(node)]
    return all(map(_is_choice, inner)) if inner else CHOOSERS.get(node.op_type) == value.index()


def _end_of(body: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Return what a body of an If, Loop or Scan makes for one of its node's outputs."""
    condition = 1 if node.op_type == "Loop" else 0
    return body.outputs[condition + (value.index() or 0)]


def _floors(given: Budget, judged: Budget, references: Sequence[Feeds]) -> dict[str, Limits]:
    """Lower the default score threshold to zero where no box of the samples would reach it."""
    lowered = {}
    for detector in judged.detectors:
        said = [given.default.score, *(each.score for each in given.outputs.values())]
        scores = np.concatenate([read_boxes(detector, feeds).scores for feeds in references])
        if said == [None] * len(said) and not np.any(scores >= (DEFAULT_BOXES.score or 0.0)):
            lowered[detector.boxes] = replace(judged.outputs[detector.boxes], score=0.0)
    return lowered
