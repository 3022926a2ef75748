"""What the outputs of a model are judged by: its detectors, its choices, and the budget for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from demi.accuracy.boxes import read_boxes
from demi.accuracy.budget import DEFAULT_BOXES, Budget, Limits
from demi.errors import InputError
from demi.exporter.operators.schemas import is_float
from demi.exporter.planning.decisions import COMPARISONS
from demi.exporter.planning.detectors import MOVES, declared_detector, find_detectors
from demi.tensors import Feeds

CHOOSERS: Mapping[str, int] = {"ArgMax": 0, "ArgMin": 0, "TopK": 1, **dict.fromkeys(COMPARISONS, 0)}
"""Operators whose answer is a choice, and which of their results it is."""

AGREE = 0.99
"""The share of an output of choices that must stay the same, where the budget says nothing else."""


STEPS = 8.0
"""How far an element of a quantized output of eight bits may be off, where the budget says nothing else."""

WIDE = 8.0
"""A quantized output counts in steps when its numbers are this many of them large, as a root of the mean square."""

QUANTIZED = frozenset({ir.DataType.UINT8, ir.DataType.INT8})


def budget_for(model: ir.Model, references: Sequence[Feeds], budget: Budget) -> Budget:
    """The budget with what it leaves open: which outputs are a detector's, and how many choices may be others.

    Raises InputError for limits of outputs that the model does not have, and for boxes where none are found.
    """
    budget.check_names(references[0])
    detectors = list(find_detectors(model, references))
    for name, limits in budget.outputs.items():
        if limits.boxes is not None and not any(name in detector.outputs for detector in detectors):
            detectors.append(declared_detector(name, model, references))
    if budget.default.boxes is not None and not detectors:
        raise InputError(
            "the budget limits boxes, and no output looks like a detector's",
            where=f"--budget boxes={budget.default.boxes:g}",
            hint="name the output that holds them, as in OUTPUT:boxes=0.01",
        )
    of_detectors = {name for detector in detectors for name in detector.outputs}
    judged = _with_steps(_with_choices(budget, model, of_detectors), model, references, of_detectors)
    judged = judged.judging(detectors)
    return replace(judged, outputs=dict(judged.outputs) | _floors(budget, judged, references))


def _with_choices(budget: Budget, model: ir.Model, of_detectors: set[str]) -> Budget:
    """Outputs that are choices may differ in a few elements: of two answers that are equally good either is right."""
    outputs = dict(budget.outputs)
    for value in model.graph.outputs:
        name = value.name or ""
        if name not in of_detectors and _is_choice(value) and budget.limits(name).agree is None:
            outputs[name] = outputs.get(name, Limits()).over(Limits(agree=AGREE))
    return replace(budget, outputs=outputs)


def _with_steps(budget: Budget, model: ir.Model, references: Sequence[Feeds], of_detectors: set[str]) -> Budget:
    """Outputs that are quantized numbers, a picture say, may be a step off."""
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
    """Whether an output is of eight bits, made of floats and moved but not computed with."""
    if value.dtype not in QUANTIZED:
        return False
    while (node := value.producer()) is not None and node.op_type in MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        if is_float(value):
            return True
    return node is not None and node.op_type == "QuantizeLinear"


def _is_choice(value: ir.Value) -> bool:
    """Whether an output of integers or booleans is what an operator chose, moved but not computed with."""
    while (node := value.producer()) is not None and node.op_type in MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
    return node is not None and CHOOSERS.get(node.op_type) == value.index()


def _floors(given: Budget, judged: Budget, references: Sequence[Feeds]) -> dict[str, Limits]:
    """The default floor of the scores, lowered to nothing where no box of the samples would reach it."""
    lowered = {}
    for detector in judged.detectors:
        said = [given.default.score, *(each.score for each in given.outputs.values())]
        scores = np.concatenate([read_boxes(detector, feeds).scores for feeds in references])
        if said == [None] * len(said) and not np.any(scores >= (DEFAULT_BOXES.score or 0.0)):
            lowered[detector.boxes] = replace(judged.outputs[detector.boxes], score=0.0)
    return lowered
