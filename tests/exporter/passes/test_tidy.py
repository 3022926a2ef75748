"""Tidy: unread nodes and casts that undo each other are removed, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from demi.exporter.passes.lower import apply_plan
from demi.exporter.passes.tidy import tidy
from demi.exporter.planning.op_list import op_list_plan
from demi.float16 import FP16
from tests.models import BRANCHES, MLP, check, ops, parse, prepared, run, text

FP32_TO, HALF_TO, DOUBLE_TO = "Cast <to = 1>", "Cast <to = 10>", "Cast <to = 11>"


def tidied(source: str) -> tuple[bool, ir.Model]:
    """Return whether anything changed, and the model, which must be valid."""
    model = prepared(source)
    changed = tidy(model)
    check(model)
    return changed, model


def test_a_tidy_model_is_left_alone():
    """A tidy model is unchanged, and reported so."""
    model = parse(MLP)
    before = text(model)

    assert not tidy(model)
    assert before == text(model)


def test_tidy_twice_is_tidy():
    """A second time there is nothing left to do."""
    _, model = tidied("m (float[n] x) => (float[n] y) { unread = Neg(x) y = Relu(x) }")

    assert not tidy(model)


def test_unread_nodes_and_weights_go():
    """An unread node, the nodes that only it read, and an unread weight are removed."""
    changed, model = tidied(
        "m (float[n] x) => (float[n] y) <float a = {1.0}, float b = {2.0}> { p = Mul(x, a) q = Neg(p) y = Relu(x) }"
    )

    assert changed
    assert ["Relu"] == ops(model)
    assert {} == dict(model.graph.initializers)


def test_unread_weights_of_branches_go():
    """In subgraphs as well."""
    source = BRANCHES.replace("yes () => (float[n] a) {", "yes () => (float[n] a) <float idle = {3.0}> {")
    changed, model = tidied(source)

    assert changed
    assert [] == [name for graph in model.graph.subgraphs() for name in graph.initializers]


def test_unused_functions_and_imports_go():
    """An unused function is removed, and the import of its domain."""
    source = """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]> m (float[n] x) => (float[n] y) { y = Relu(x) }
    <domain: "mine", opset_import: ["" : 20]> f (a) => (b) { b = Neg(a) }"""
    model = parse(source)

    assert tidy(model)
    assert {"": 20} == model.opset_imports
    assert {} == dict(model.functions)


def test_the_standard_import_stays():
    """A model of identities alone still says in which opset it is."""
    changed, model = tidied("m (float[n] x) => (float[n] x) { unread = Neg(x) }")

    assert changed
    assert {"": 20} == model.opset_imports


@pytest.mark.parametrize(
    ("kind", "casts"),
    [
        ("float", f"y0 = {FP32_TO}(x)"),
        ("float16", f"w = {FP32_TO}(x) y0 = {HALF_TO}(w)"),
        ("float16", f"w = {DOUBLE_TO}(x) y0 = {HALF_TO}(w)"),
        ("float", f"w = {DOUBLE_TO}(x) y0 = {FP32_TO}(w)"),
    ],
    ids=["to its own type", "half there and back", "half over double", "single over double"],
)
def test_casts_that_change_nothing_go(kind: str, casts: str):
    """The reader reads what was there before."""
    changed, model = tidied(f"m ({kind}[n] x) => ({kind}[n] y) {{ {casts} y = Neg(y0) }}")

    assert changed
    assert ["Neg"] == ops(model)


@pytest.mark.parametrize(
    "casts", [f"w = {HALF_TO}(x) y0 = {FP32_TO}(w)", "w = Cast <to = 7> (x) y0 = Cast <to = 1> (w)"]
)
def test_casts_that_round_stay(casts: str):
    """FP32 to half and back loses digits, as a truncation does: that is what the model computes."""
    changed, model = tidied(f"m (float[n] x) => (float[n] y) {{ {casts} y = Neg(y0) }}")

    assert not changed
    assert ["Cast", "Cast", "Neg"] == ops(model)


def test_a_cast_others_read_stays_for_them():
    """Only the cast back is removed; the wide value still has a reader."""
    _, model = tidied(
        f"m (float16[n] x) => (float16[n] y, float[n] z) {{ w = {FP32_TO}(x) b = {HALF_TO}(w) y = Neg(b) z = Abs(w) }}"
    )

    assert ["Cast", "Neg", "Abs"] == ops(model)


def test_a_cast_that_makes_an_output_stays():
    """An output keeps its name."""
    changed, model = tidied("m (float[n] x) => (float[n] y) { y = Cast <to = 1> (x) }")

    assert not changed
    assert ["y"] == [value.name for value in model.graph.outputs]


def test_half_parts_a_model_came_with_meet_half_nodes_without_casts():
    """If the model widens a half tensor and the plan makes its reader half, both casts are removed and not counted."""
    source = f"m (float16[n] x) => (float16[n] y) {{ w = {FP32_TO}(x) [act] a = Sigmoid(w) y = {HALF_TO}(a) }}"
    model = prepared(source)

    lowered = apply_plan(model, op_list_plan(model, FP16))

    assert ["Sigmoid"] == [op for op in ops(lowered.model) if op != "Cast"]
    assert 0 == lowered.casts
    x = {"x": np.float16([0.5, -2.0])}
    np.testing.assert_allclose(run(model, x)["y"], run(lowered.model, x)["y"], rtol=1e-3)


def test_lowering_says_whether_it_changed_anything():
    """A plan without half nodes leaves the model as it was; one with some does not."""
    model = prepared(MLP)

    assert apply_plan(model, op_list_plan(model, FP16)).modified
    assert not apply_plan(model, op_list_plan(model, FP16, keep_fp32=["*"])).modified
