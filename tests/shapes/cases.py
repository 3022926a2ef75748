"""One shape on the whole road: exported, converted on two sets of inputs, and emulated on two that planning never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from bench.shapes import export_shape
from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison, compare
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.exporter.api import Converted, convert
from demi.exporter.conversion import emulate
from demi.exporter.planning.costs import CONTRACTIONS
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds

SEEN = 2
"""Sets of inputs that planning sees; the others are kept for judging."""

HEAVY = CONTRACTIONS | {"LSTM", "GRU"}
"""Operators that sum products, where half saves time."""


@dataclass(frozen=True)
class Case:
    """A shape, what was made of it, and how far it is from FP32 on inputs that planning never saw."""

    name: str
    original: onnx.ModelProto
    converted: Converted
    unseen: tuple[Feeds, ...]
    comparison: Comparison
    """On the unseen sets, under the emulator."""


def make_case(name: str, folder: Path, precision: str = "fp16") -> Case:
    """Convert the shape's file in `folder`, which is exported when it is not there."""
    path, sets = export_shape(name, folder)
    original = onnx.load(path)
    converted = convert(original, sets[:SEEN], precision=precision)
    unseen = tuple(sets[SEEN:])
    with session_for(ir.from_proto(original), settings=FAITHFUL) as session:
        references = [session.run(feeds) for feeds in unseen]
    measured = emulate(ir.from_proto(converted.model), Samples(unseen, "unseen"))
    return Case(name, original, converted, unseen, compare(references, measured, Budget()))


def half_share(model: onnx.ModelProto) -> float:
    """The share of the nodes that sum products (subgraphs included) whose result is half."""
    heavy = [node for node in ir.from_proto(model).graph.all_nodes() if node.op_type in HEAVY]
    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return sum(node.outputs[0].dtype in half for node in heavy) / len(heavy)
