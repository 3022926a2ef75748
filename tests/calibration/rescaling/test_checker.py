"""The checker on hand-made certificates: accepted ones, and refused ones with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.rescaling.certificate import (
    Certificate,
    ScaledConstant,
    ScaledNumber,
    read_certificate,
)
from demi.calibration.rescaling.checker import check_lowered, check_rescaled
from demi.calibration.rescaling.walk import check_exponents
from demi.errors import BundleError
from tests.models import prepared

SCALED = "m (float[2] x) => (float[2] y) <float a = {2.0}, float b = {4.0}> { h = Mul(x, a)\n y = Mul(h, b) }"
HALVED = SCALED.replace("{2.0}", "{1.0}").replace("{4.0}", "{8.0}")
BOTH = (ScaledConstant("a", "a", -1), ScaledConstant("b", "b", 1))


def test_factors_that_cancel_are_accepted():
    """Factors whose product is 1 are accepted."""
    assert [] == check_rescaled(prepared(SCALED), prepared(HALVED), Certificate({"h": -1}, BOTH))


@pytest.mark.parametrize(
    ("certificate", "problem"),
    [
        (Certificate({"h": -2}, BOTH), "`h` is 2^-1 times the original's, not 2^-2"),
        (Certificate({}, BOTH[:1]), "`b` is not 2^0 times `b`"),
        (Certificate({}, (BOTH[0], ScaledConstant("b", "b", 2))), "`b` is not 2^2 times `b`"),
        (Certificate({}, (BOTH[0], ScaledConstant("b", "c", 1))), "the original has no constant `c`"),
    ],
    ids=["tensor", "missing", "exponent", "source"],
)
def test_wrong_certificate_is_refused(certificate: Certificate, problem: str):
    """A wrong exponent of a tensor or constant, or a wrong source, is refused."""
    assert problem in check_rescaled(prepared(SCALED), prepared(HALVED), certificate)


def test_model_with_another_node_is_refused():
    """A rescaled model with other computations is refused."""
    original = prepared(SCALED.replace("h = Mul", "[first] h = Mul"))
    other = prepared(SCALED.replace("h = Mul", "[first] h = Div"))

    assert ["`first` is another node in the rescaled model"] == check_rescaled(original, other, Certificate())


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("h = Mul(x, a)\n y = Add(h, x)", "operands of different scales meet"),
        ("h = Mul(x, a)\n y = Sigmoid(h)", "nothing is known of how Sigmoid scales"),
        ("y = Mul(x, a)", "the output `y` is 2^-1 times the original's"),
        ("h = Mul(x, a)\n g = Sqrt(h)\n y = Mul(g, b)", "the root of an odd power of two"),
        ("h = Mul(x, a)\n y = LpNormalization(h)", None),
        ("h = Mul(x, a)\n i = Cast<to=7>(h)\n y = Cast<to=1>(i)", "a scaled tensor becomes integers"),
        ("h = Mul(x, a)\n y = PRelu(x, h)", "an operand is scaled that must keep its scale"),
    ],
    ids=["sum", "unknown", "output", "root", "normalized", "integers", "slope"],
)
def test_each_equation_is_checked(body: str, problem: str | None):
    """With `a` scaled by one half, each node must pass the scale on or not depend on it."""
    model = prepared(f"m (float[2] x) => (float[2] y) <float a = {{1.0}}, float b = {{4.0}}> {{ {body} }}")
    claimed = {"a": ScaledConstant("a", "a", -1)}

    found = check_exponents(model, Certificate(), claimed.get)

    assert (problem is None and not found) or any(problem in each for each in found)


@pytest.mark.parametrize(("exponent", "is_right"), [(-2, True), (-1, False), (0, False)])
def test_epsilon_follows_the_square_of_its_input(exponent: int, is_right: bool):
    """A LayerNormalization of 2^-1 x needs its epsilon times 2^-2."""
    model = prepared(
        "m (float[2] x) => (float[2] y) <float a = {1.0}, float[2] s = {1.0, 2.0}> "
        "{ h = Mul(x, a)\n [norm] y = LayerNormalization<epsilon=0.0025>(h, s) }"
    )
    numbers = (ScaledNumber("norm", "epsilon", 0.01, exponent),)
    claimed = {"a": ScaledConstant("a", "a", -1)}

    assert is_right == (not check_exponents(model, Certificate(numbers=numbers), claimed.get))


LOOP = """
m (float[2] x) => (float[2] y) <float a = {1.0}, float b = {4.0}, int64 n = {3}, bool go = {1}>
{
  h = Mul(x, a)
  g = Loop(n, go, h) <body = turn (int64 i, bool c, float[2] v) => (bool d, float[2] w) { d = Identity(c)  w = BODY }>
  y = Mul(g, b)
}
"""


@pytest.mark.parametrize(
    ("body", "is_right"), [("Relu(v)", True), ("Add(v, v)", True), ("Mul(v, v)", False), ("Add(v, x)", False)]
)
def test_loop_keeps_the_scale_of_carried_values(body: str, is_right: bool):
    """A carried value must have the same scale before and after an iteration."""
    claimed = {"a": ScaledConstant("a", "a", -1), "b": ScaledConstant("b", "b", 1)}

    assert is_right == (not check_exponents(prepared(LOOP.replace("BODY", body)), Certificate(), claimed.get))


class TestCertificate:
    """The certificate's file."""

    def test_round_trip(self, tmp_path: Path):
        """A certificate is read as it was written."""
        certificate = Certificate({"h": -1}, BOTH, (ScaledNumber("norm", "epsilon", 1e-5, -2),), samples=3)
        (tmp_path / "rescale.json").write_bytes(certificate.to_json())

        assert certificate == read_certificate(tmp_path / "rescale.json")

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            '{"schema": 2, "certificate": {}}',
            '{"schema": 1, "certificate": {"tensors": {"h": 1000}}}',
            '{"schema": 1, "certificate": {}, "more": 1}',
            '{"schema": 1, "certificate": {"tensors": {"h": "one"}}}',
        ],
    )
    def test_damaged_file_is_refused(self, tmp_path: Path, text: str):
        """Text that is not JSON, another schema, exponents beyond FP32, and unknown or mistyped fields are refused."""
        (tmp_path / "rescale.json").write_text(text)

        with pytest.raises(BundleError, match="certificate"):
            read_certificate(tmp_path / "rescale.json")


class TestForgery:
    """Certificates and models made to deceive: each is refused, with the reason."""

    def test_constant_claimed_twice(self):
        """A weight that is also claimed to be a factor would hide the node that multiplies by it."""
        model = "m (float[2] x) => (float[2] y) <float w = {3.0}> { BODY }"
        original = prepared(model.replace("BODY", "[a] h = Relu(x)\n [b] y = Mul(h, w)"))
        forged = prepared(model.replace("BODY", "[a] h = Relu(x)\n [extra] g = Mul(h, w)\n [b] y = Mul(g, w)"))
        claims = (ScaledConstant("w", "", 0), ScaledConstant("w", "w", 0))

        assert "`w` is claimed twice" in check_rescaled(original, forged, Certificate({}, claims))

    def test_factor_that_is_an_input(self):
        """A tensor that callers give is no power of two."""
        model = "m (float[2] x, float[2] z) => (float[2] y) { BODY }"
        original = prepared(model.replace("BODY", "[a] h = Add(x, z)\n [b] y = Relu(h)"))
        forged = prepared(model.replace("BODY", "[a] h = Add(x, z)\n [extra] g = Mul(h, z)\n [b] y = Relu(g)"))

        assert check_rescaled(original, forged, Certificate({}, (ScaledConstant("z", "", 0),)))

    def test_factor_with_a_shape(self):
        """A factor of shape (1, 1, 1) would give the product another rank."""
        original = prepared("m (float[2] x) => (float y) { [a] h = Relu(x)\n [b] y = ReduceSum<keepdims=0>(h) }")
        forged = prepared(
            "m (float[2] x) => (float y) <float[1, 1, 1] k = {1.0}> "
            "{ [a] h = Relu(x)\n [extra] g = Mul(h, k)\n [b] y = ReduceSum<keepdims=0>(g) }"
        )

        assert ["`k` is not 2^0"] == check_rescaled(original, forged, Certificate({}, (ScaledConstant("k", "", 0),)))

    def test_attribute_that_must_keep_its_number(self):
        """The slope of a LeakyRelu is no number that follows a scale."""
        text = "m (float[2] x) => (float[2] y) { [act] y = LeakyRelu<alpha=NUMBER>(x) }"
        original, forged = (prepared(text.replace("NUMBER", number)) for number in ("0.25", "0.5"))
        numbers = (ScaledNumber("act", "alpha", 0.25, 1),)

        found = check_rescaled(original, forged, Certificate(numbers=numbers))

        assert ["`act` (LeakyRelu): the attribute `alpha` must keep its number"] == found

    def test_attribute_that_the_original_leaves_out(self):
        """Its number is the schema's default, whatever the certificate says."""
        text = "m (float[2] x) => (float[2] y) <float[2] s = {1.0, 2.0}> { [n] y = LayerNormalizationEPS(x, s) }"
        original, forged = prepared(text.replace("EPS", "")), prepared(text.replace("EPS", "<epsilon=0.5>"))
        numbers = (ScaledNumber("n", "epsilon", 0.5, 0),)

        assert ["`epsilon` of `n` is not 0.5 in the original"] == check_rescaled(
            original, forged, Certificate(numbers=numbers)
        )

    def test_other_outputs(self):
        """Two outputs that are exchanged."""
        text = "m (float[2] x) => (OUTPUTS) { [a] y = Relu(x)\n [b] z = Neg(x) }"
        original, forged = (
            prepared(text.replace("OUTPUTS", each)) for each in ("float[2] y, float[2] z", "float[2] z, float[2] y")
        )

        assert ["the rescaled model has other inputs, outputs or branches than the original"] == check_rescaled(
            original, forged, Certificate()
        )

    def test_other_branch_result(self):
        """The branches of an If hand out other tensors, though every node is the same."""
        text = """
        m (bool c, float[2] x) => (float[2] y) {
          [if] y = If(c) <then_branch = t () => (float[2] THEN) { [a] p = Relu(x)\n [b] q = Neg(p) },
                          else_branch = e () => (float[2] r) { [c] r = Abs(x) }>
        }"""
        original, forged = (prepared(text.replace("THEN", each)) for each in ("q", "p"))

        assert check_rescaled(original, forged, Certificate())

    def test_large_tensor_in_an_attribute(self):
        """Numbers that are left out where an array is printed are compared nevertheless."""
        original = prepared(SCALED.replace("h = Mul", "[first] h = Mul"))
        forged = original.clone()
        for model, last in ((original, 0.0), (forged, 1.0)):
            numbers = np.zeros(5000, np.float32)
            numbers[2500] = last
            next(iter(model.graph)).attributes["table"] = ir.AttrTensor("table", ir.tensor(numbers))

        assert ["`first` is another node in the rescaled model"] == check_rescaled(original, forged, Certificate())

    def test_sign_of_zero(self):
        """-0 is not 0: what divides by it differs."""
        text = "m (float[2] x) => (float[2] y) <float[2] w = {ZERO, 1.0}> { [a] y = Mul(x, w) }"
        original, forged = (prepared(text.replace("ZERO", each)) for each in ("0.0", "-0.0"))

        assert ["`w` is not 2^0 times `w`"] == check_rescaled(original, forged, Certificate())

    def test_exponents_that_do_not_fill_their_shape(self, tmp_path: Path):
        """A certificate by channel whose numbers and shape disagree is refused when it is read."""
        constant = '{"name": "w", "source": "w", "exponent": {"shape": [3], "exponents": [1, 2]}}'
        (tmp_path / "rescale.json").write_text('{"schema": 1, "certificate": {"constants": [' + constant + "]}}")

        with pytest.raises(BundleError, match="do not fill the shape"):
            read_certificate(tmp_path / "rescale.json")


class TestHalf:
    """Constants of the half model: the original's times their power of two, rounded."""

    TEXT = "m (float[2] x) => (float[2] y) <NUMBERS> { [a] h = Mul(x, a)\n [b] y = Div(h, a) }"
    SINGLE = TEXT.replace("NUMBERS", "float a = {1e-6}")
    CERTIFICATE = Certificate({"h": -16}, (ScaledConstant("a", "a", -16),))

    def problems(self, number: float) -> list[str]:
        """What the checker says where half holds this number for 1e-6 x 2^-16, which is 1.5e-11."""
        mixed = prepared(self.SINGLE)
        (value,) = mixed.graph.initializers.values()
        value.const_value, value.dtype = ir.tensor(np.array(number, np.float16)), ir.DataType.FLOAT16
        return check_lowered(mixed, self.CERTIFICATE, prepared(self.SINGLE))

    @pytest.mark.parametrize("number", [0.0, 2.0**-24])
    def test_a_number_that_vanishes(self, number: float):
        """It is 0, or half's smallest number where it is an epsilon that must stay above 0."""
        assert [] == self.problems(number)

    @pytest.mark.parametrize("number", [2.0**-23, -(2.0**-24), 1e-6])
    def test_another_number(self, number: float):
        """Nothing else passes for it."""
        assert ["`a` is not 2^-16 times the reference's `a`"] == self.problems(number)
