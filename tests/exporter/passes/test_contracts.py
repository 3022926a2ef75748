"""The contracts of the passes find a model that breaks them."""

import pytest

from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.tidy import tidy
from tests.contracts import require_prepared, require_tidy
from tests.models import parse

FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
local (float[n] x) => (float[n] y) { y = mine.twice(x) }
<domain: "mine", opset_import: ["" : 17]>
twice (p) => (q) { q = Add(p, p) }
"""


@pytest.mark.parametrize(
    ("source", "broken"),
    [
        (FUNCTION, "a local function is left"),
        ("m (float[n] x) => (float[n] y) { c = Constant <value_float = 1.0> () y = Add(x, c) }", "Constant nodes"),
        ("m (float[n] x) => (float[n] y) { y = Neg(x) }", "a node has no name"),
        ("m (float[n] x) => (float[n] y) { [a] z = Neg(x) [a] y = Neg(z) }", "two nodes share a name"),
    ],
)
def test_unprepared_model_is_found(source, broken):
    """A model that violates the contract is found, and `prepare` repairs it."""
    with pytest.raises(AssertionError, match=broken):
        require_prepared(parse(source))

    require_prepared(prepare(parse(source)))


def test_unsorted_nodes_are_found():
    """A node before the one it reads."""
    model = prepare(parse("m (float[n] x) => (float[n] y) { [a] z = Neg(x) [b] y = Abs(z) }"))
    first, second = model.graph
    model.graph.remove(second)
    model.graph.insert_before(first, second)

    with pytest.raises(AssertionError, match="`b` comes before `a`"):
        require_prepared(model)


@pytest.mark.parametrize(
    ("body", "weights", "broken"),
    [
        ("[unread] z = Neg(x) [a] y = Abs(x)", "", "`unread` is not read"),
        ("[same] z = Cast <to = 1> (x) [a] y = Abs(z)", "", "`same` keeps its type"),
        ("[a] y = Abs(x)", "<float[1] w = {1}>", "`w` is not read"),
    ],
)
def test_untidy_model_is_found(body, weights, broken):
    """A model that violates the contract is found, and `tidy` repairs it."""
    model = prepare(parse(f"m (float[n] x) => (float[n] y) {weights} {{ {body} }}"))

    with pytest.raises(AssertionError, match=broken):
        require_tidy(model)

    tidy(model)
    require_tidy(model)
