"""Hard models for the planner: with all nodes in half they fail, and a good plan leaves little in FP32.

The first half of this file examines the models themselves; the second half examines `exporter.convert` with them.
Evaluation inputs are other draws from the calibration's distribution, and all error is measured under the emulator.
"""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison, compare
from demi.calibration.emulation.widen import HALF_TYPES, widen
from demi.calibration.sessions import session_for
from demi.errors import InferenceError
from demi.exporter.operators import schemas
from demi.exporter.passes.lower import apply_plan
from demi.exporter.passes.prepare import prepare
from demi.plan import Decision, Precision, Reason, make_plan
from demi.runtime.options import FAITHFUL

from .build import CORPUS, SPOT, Feeds, HardModel

for module in ("overflow", "underflow", "integers", "masks", "benign", "composites"):
    importlib.import_module(f".{module}", __package__)

LIMIT = 1e-2
"""Maximum relative L2 error of any output."""
LEAST = {"overflow": 18, "underflow": 18, "integers": 14, "masks": 10, "benign": 10, "composites": 5}
HEAVY = {"MatMul", "Gemm", "Conv"}

every_model = pytest.mark.parametrize("name", list(CORPUS))


def test_every_class_is_represented():
    """The corpus has a minimum number of models of each class."""
    kinds = Counter(CORPUS[name]().kind for name in CORPUS)

    assert set(LEAST) == set(kinds)
    assert all(kinds[kind] >= least for kind, least in LEAST.items())


@every_model
def test_reference_is_valid(name: str):
    """FP32 outputs are finite and vary, the batch is free, and evaluation inputs are not the calibration's."""
    hard = CORPUS[name]()

    assert all(i.type.tensor_type.shape.dim[0].dim_param == "batch" for i in hard.model.graph.input)
    assert all(np.isfinite(array).all() for feeds in references(name) for array in feeds.values())
    assert all(np.ptp(array) > 0 for array in references(name)[0].values())
    assert all(
        any(not np.array_equal(seen[key], new[key]) for key in seen)
        for seen in hard.calibration
        for new in hard.evaluation
    )


@every_model
def test_naive_half(name: str):
    """With everything in half the error is large, non-finite or an index out of bounds; benign models are accurate."""
    try:
        naive = all(emulated(name, planned(name, lambda node: True)).values())
    except InferenceError:
        naive = False

    assert (CORPUS[name]().kind == "benign") == naive


@every_model
def test_good_plan_exists(name: str):
    """With ordinary MatMul and Conv in half and the rest in FP32 the model is accurate and has enough in half."""
    mixed = planned(name, lambda node: node.op_type in HEAVY and not (node.name or "").startswith(SPOT))

    assert all(emulated(name, mixed).values())
    assert half_share(mixed) >= CORPUS[name]().min_half_share


@every_model
def test_leaving_all_in_fp32_is_lazy(name: str):
    """A model with nothing in half does not count as a conversion."""
    assert half_share(planned(name, lambda node: False)) < CORPUS[name]().min_half_share


@every_model
def test_conversion_is_accurate(name: str):
    """The converted model is within 1e-2 on held-out inputs; integers are equal."""
    mixed = converted(name)

    assert dict.fromkeys(references(name)[0], True) == emulated(name, mixed)


@every_model
def test_conversion_is_not_lazy(name: str):
    """The converted model has the ordinary MatMul and Conv nodes in half."""
    assert half_share(converted(name)) >= CORPUS[name]().min_half_share


@functools.cache
def prepared(name: str) -> ir.Model:
    """Return the FP32 model, ready for a plan."""
    return prepare(ir.from_proto(CORPUS[name]().model))


@functools.cache
def references(name: str) -> list[Feeds]:
    """Return FP32's outputs for the evaluation inputs."""
    hard = CORPUS[name]()
    return answers(ir.from_proto(hard.model), hard)


@functools.cache
def converted(name: str) -> ir.Model:
    """Return the conversion of a model with its calibration inputs."""
    from demi.exporter import convert

    hard = CORPUS[name]()
    proto: onnx.ModelProto = convert(hard.model, hard.calibration).model
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def planned(name: str, wanted: Callable[[ir.Node], bool]) -> ir.Model:
    """Return the model with the wanted nodes in half, as far as their schemas allow half."""
    model = prepared(name)
    nodes = [node for node in model.graph.all_nodes() if schemas.touches_float(node)]
    return apply_plan(model, make_plan("fp16", [decision(node, model, wanted(node)) for node in nodes])).model


def decision(node: ir.Node, model: ir.Model, wanted: bool) -> Decision:
    """Half when wanted and possible."""
    possible = schemas.half_operands(node, schemas.opset_version(node, model), ir.DataType.FLOAT16)
    precision = Precision.HALF if wanted and possible else Precision.SINGLE
    return Decision(node.name or "", node.op_type, precision, Reason.SAFE)


def emulated(name: str, mixed: ir.Model) -> dict[str, bool]:
    """Return for each output whether a mixed model is within the limit on the evaluation inputs."""
    comparison = compared(references(name), answers(widen(mixed), CORPUS[name]()))
    return {diff.output: diff.relative_l2 <= LIMIT for diff in comparison.outputs}


def compared(want: Sequence[Feeds], got: Sequence[Feeds]) -> Comparison:
    """Return errors by output; a relative L2 error is infinite when an integer or a non-finite value is wrong."""
    return compare(want, got, Budget())


def answers(model: ir.Model, hard: HardModel) -> list[Any]:
    """Return a model's outputs for the evaluation inputs."""
    with session_for(model, settings=FAITHFUL) as session:
        return [session.run(feeds) for feeds in hard.evaluation]


def half_share(mixed: ir.Model) -> float:
    """Return the share of MatMul, Gemm and Conv nodes, subgraphs included, that read and write half."""
    heavy = [node for node in mixed.graph.all_nodes() if node.op_type in HEAVY]
    return sum(in_half(node) for node in heavy) / len(heavy)


def in_half(node: ir.Node) -> bool:
    """Return whether a node reads and writes half."""
    return all(value.dtype in HALF_TYPES for value in (node.inputs[0], *node.outputs) if value is not None)
