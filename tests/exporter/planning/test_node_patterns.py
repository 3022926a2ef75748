"""Naming nodes: by their own name, by a glob, by their operator."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.errors import InputError
from demi.exporter import convert
from demi.exporter.planning.node_patterns import check_controls, forced_nodes, named_nodes
from demi.plan import Reason
from tests.models import prepared

BRACKETS = """
brackets (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {0.5, 0.25, -0.5, 1.0}>
{
  [one] a = MatMul(x, w)
  [two] b = MatMul(a, w)
  [three] c = Relu(b)
  [four] y = MatMul(c, w)
}
"""


def named(**names):
    """Return the model with its nodes renamed; ONNX text allows no brackets in names."""
    model = prepared(BRACKETS)
    for node in model.graph:
        node.name = names.get(node.name, node.name)
    return model


@pytest.mark.parametrize("name", ["block[0]/MatMul", "a*b", "what?", "[!x]", "[", "层/卷积 1"])
def test_a_nodes_own_name_is_no_glob(name):
    """A name is found whatever brackets and stars it holds."""
    assert {name: name} == named_nodes(named(one=name), [name])


@pytest.mark.parametrize(("name", "like_it"), [("block[0]", "block0"), ("a*", "ab"), ("a?", "ab")])
def test_a_nodes_own_name_fits_no_other(name, like_it):
    """A pattern that is a node's exact name is not used as a glob."""
    assert [name] == list(named_nodes(named(one=name, two=like_it), [name]))


def test_a_pattern_that_is_no_name_is_a_glob():
    """Brackets, stars and question marks stand for what they stand for in a shell."""
    model = named(one="block0", two="block1")

    assert {"block0": "block[01]", "block1": "block[01]"} == named_nodes(model, ["block[01]"])


def test_an_operator_type_fits_all_its_nodes():
    """Though a node is called like it."""
    assert {"one", "two", "MatMul"} == set(named_nodes(named(four="MatMul"), ["MatMul"]))


def test_forcing_follows_the_same_names():
    """A forced node with brackets wins over an operator type that is kept."""
    assert {"block[0]"} == forced_nodes(named(one="block[0]", two="block0"), ["block[0]"], ["MatMul"])


def test_two_exact_names_contradict_each_other():
    """Requesting one node in FP32 and in half is an error that names it."""
    with pytest.raises(InputError, match=r"`block\[0\]` is requested in FP32"):
        check_controls(named(one="block[0]"), ["block[0]"], ["block[0]"])


def test_a_kept_name_with_brackets_is_kept():
    """From the API to the plan."""
    model = ir.to_proto(named(one="block[0]/MatMul", two="block0/MatMul"))

    plan = convert(model, [{"x": np.ones((3, 2), np.float32)}], keep_fp32=["block[0]/MatMul"]).plan

    assert Reason.PINNED is plan["block[0]/MatMul"].reason
    assert plan["block0/MatMul"].reason is not Reason.PINNED
