"""Public names: outputs and free axes get the requested names."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.errors import SourceError
from demi.exporter.passes.public_names import rename_axes, rename_inputs, rename_outputs
from tests.models import MLP, check, parse, run, text

TWO = "two (float[n] x) => (float[n] a, float[n] b) { a = Neg(x) inner = Abs(a) b = Exp(inner) }"


def renamed(source, *names):
    """A model whose outputs have been renamed."""
    model = parse(source)
    rename_outputs(model, names)
    check(model)
    return model


def public(model):
    """Names of the outputs."""
    return [value.name for value in model.graph.outputs]


class TestOutputs:
    """Names of outputs."""

    def test_in_order(self):
        """Outputs get their names in order, and answer as before."""
        model = renamed(TWO, "logits", "scores")
        got = run(model, {"x": np.float32([1.0])})

        assert ["logits", "scores"] == public(model)
        assert [-1.0] == got["logits"].tolist()
        assert [pytest.approx(np.e)] == got["scores"].tolist()

    def test_names_they_have(self):
        """Their own names are fine."""
        assert ["a", "b"] == public(renamed(TWO, "a", "b"))

    def test_names_swapped(self):
        """Two outputs may swap names."""
        model = renamed(TWO, "b", "a")

        assert ["b", "a"] == public(model)
        assert [-1.0] == run(model, {"x": np.float32([1.0])})["b"].tolist()

    def test_name_of_an_inner_value(self):
        """An inner value that has the wanted name steps aside."""
        model = renamed(TWO, "inner", "b")

        assert ["inner", "b"] == public(model)
        assert [-1.0] == run(model, {"x": np.float32([1.0])})["inner"].tolist()

    def test_name_that_stepping_aside_would_take(self):
        """It steps aside to a name that is free."""
        text = "m (float[n] x) => (float[n] a) { y = Neg(x) y_inner = Abs(y) a = Exp(y_inner) }"

        assert ["y"] == public(renamed(text, "y"))

    def test_name_of_a_weight(self):
        """A weight that has the wanted name steps aside as well."""
        model = renamed(MLP, "w1")

        assert ["w1"] == public(model)
        assert "w1" not in model.graph.initializers

    def test_output_that_is_an_input(self):
        """An input that is handed through keeps its name; the output gets its own."""
        model = renamed("through (float[n] x) => (float[n] x) { }", "y")

        assert (["x"], ["y"]) == ([value.name for value in model.graph.inputs], public(model))
        assert [2.0] == run(model, {"x": np.float32([2])})["y"].tolist()

    def test_output_that_is_a_weight(self):
        """A weight that is an output gets the name through an Identity."""
        model = renamed("m (float[n] x) => (float[n] y, float[2] w) <float[2] w = {1.0, 2.0}> { y = Neg(x) }", "a", "b")

        assert ["a", "b"] == public(model)
        assert [1.0, 2.0] == run(model, {"x": np.float32([2])})["b"].tolist()

    def test_one_value_as_two_outputs(self):
        """A value that is two outputs gets two names."""
        model = parse("m (float[n] x) => (float[n] y) { y = Neg(x) }")
        model.graph.outputs.append(model.graph.outputs[0])
        rename_outputs(model, ["a", "b"])

        check(model)
        got = run(model, {"x": np.float32([1])})
        assert got["a"] == got["b"]

    @pytest.mark.parametrize("names", [(), ("a",), ("a", "b", "c"), ("a", "a")])
    def test_wrong_number_of_names(self, names):
        """There is one different name for each output."""
        with pytest.raises(SourceError, match="for 2 outputs") as caught:
            renamed(TWO, *names)
        assert "--output-names" in caught.value.hint

    def test_name_of_an_input(self):
        """An output cannot have an input's name."""
        with pytest.raises(SourceError, match="`x` is an input's name"):
            renamed(TWO, "x", "b")


class TestInputs:
    """Names of inputs."""

    def test_in_order(self):
        """Inputs get their names in order; inner values of those names step aside."""
        model = parse("m (float[n] p, float[n] q) => (float[n] y) { left = Neg(p) y = Add(left, q) }")
        rename_inputs(model, ["left", "p"])

        check(model)
        assert ["left", "p"] == [value.name for value in model.graph.inputs]
        assert [1.0] == run(model, {"left": np.float32([2]), "p": np.float32([3])})["y"].tolist()

    def test_names_they_have(self):
        """Inputs that have their names are left alone."""
        model = parse(MLP)
        rename_inputs(model, ["x"])

        assert text(parse(MLP)) == text(model)


class TestAxes:
    """Names of free axes."""

    def axes(self, text, **given):
        """The shapes of all inputs and outputs after their axes were named."""
        model = parse(text)
        rename_axes(model, given)
        return [
            [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            for value in (*model.graph.inputs, *model.graph.outputs)
        ]

    def test_first_axis_is_the_batch(self):
        """A free first axis is called `batch`; others after their input and position."""
        text = "m (float[s0, s1, 3] x) => (float[s0, s1, 3] y) { y = Neg(x) }"

        assert [["batch", "x_dim1", 3], ["batch", "x_dim1", 3]] == self.axes(text)

    def test_names_that_were_given(self):
        """Names the user gave are used."""
        text = "m (float[s0, s1] x) => (float[s0, s1] y) { y = Neg(x) }"

        assert [["rows", "seq"], ["rows", "seq"]] == self.axes(text, x=("rows", "seq"))

    def test_sizes_that_were_given(self):
        """A size the user gave names nothing."""
        text = "m (float[s0, s1] x) => (float[s0, s1] y) { y = Neg(x) }"

        assert [["batch", "x_dim1"], ["batch", "x_dim1"]] == self.axes(text, x=(2, 3))

    def test_shared_axis(self):
        """An axis that two inputs share has one name."""
        text = "m (float[s0] x, float[s0] z) => (float[s0] y) { y = Add(x, z) }"

        assert [["batch"], ["batch"], ["batch"]] == self.axes(text)

    def test_independent_first_axes(self):
        """Two first axes of their own sizes have names of their own: a batch is one size."""
        text = "m (float[s0, 2] q, float[s1, 2] d) => (float[s0, 2] a, float[s1, 2] b) { a = Neg(q) b = Neg(d) }"

        assert [["batch", 2], ["d_dim0", 2], ["batch", 2], ["d_dim0", 2]] == self.axes(text)

    def test_independent_axes_the_user_calls_alike(self):
        """Axes that the user gives one name become one axis."""
        text = "m (float[s0, 2] q, float[s1, 2] d) => (float[s0, 2] a, float[s1, 2] b) { a = Neg(q) b = Neg(d) }"

        assert [["batch", 2]] * 4 == self.axes(text, q=("batch", 2), d=("batch", 2))

    def test_derived_dimensions_follow(self):
        """A dimension computed from free axes is rewritten with their new names; s1 does not match inside s10."""
        model = parse("m (float[s1, s10] x) => (float[k] y, float[s1, s10] z) { y = Flatten(x) z = Neg(x) }")
        model.graph.outputs[0].shape = ir.Shape(["2*s1 + s10"])
        rename_axes(model, {})

        assert "2*batch + x_dim1" == model.graph.outputs[0].shape[0].value

    def test_fixed_shapes(self):
        """A model without free axes has none to name."""
        assert [[2], [2]] == self.axes("m (float[2] x) => (float[2] y) { y = Neg(x) }")
