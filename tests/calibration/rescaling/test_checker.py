"""The checker on hand-made certificates: accepted ones, and refused ones with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from demi.calibration.rescaling.certificate import (
    Certificate,
    ScaledConstant,
    ScaledNumber,
    read_certificate,
)
from demi.calibration.rescaling.checker import check_rescaled
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
