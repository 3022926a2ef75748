"""Attention masks: which constants are masks, their value in half, and their record in the plan."""

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.emulation.widen import widen
from demi.exporter import convert
from demi.exporter.operators.mask_constants import SATURATED, saturate
from demi.exporter.passes.lower import apply_plan
from demi.float16 import BF16, FP16
from demi.plan import Reason
from tests.exporter.planning.helpers import facts, floats, operands, plan, reasons
from tests.models import parse, prepared, run

W = "float[4, 4] w = {0.5, -0.25, 0.125, 1.0, 0.1, 0.2, 0.3, 0.4, -0.5, 0.6, -0.7, 0.8, 0.9, -1.0, 0.05, 0.15}"


def attention(body, weights="float[4] mask = {0.0, 0.0, -1e9, -1e9}", inputs="", outputs="", scores="MatMul(x, w)"):
    """Scores, something on the way, and a softmax of `masked`."""
    return f"""
    attention (float[n, 4] x{inputs}) => (float[n, 4] y{outputs}) <{W}, {weights}>
    {{ [scores] scores = {scores} {body} [softmax] y = Softmax(masked) }}
    """


ADDED = attention("[add] masked = Add(scores, mask)")
CHOSEN = attention("[where] masked = Where(keep, scores, low)", "float low = {-1e9}", ", bool[n, 4] keep")
SCALED = attention(
    "[less] drop = Sub(one, keep) [scale] bias = Mul(drop, low) [add] masked = Add(scores, bias)",
    "float one = {1.0}, float low = {-3.4028234e38}",
    ", float[n, 4] keep",
)
TWICE = attention("[one] once = Add(scores, mask) [two] masked = Add(once, mask)")
CAUSAL = attention(
    "[slice] rows = Slice(mask, zero, end, zero) [add] masked = Add(scores, rows)",
    "float[4, 4] mask = {0.0, -3e38, -3e38, -3e38, 0.0, 0.0, -3e38, -3e38, 0.0, 0.0, 0.0, -3e38, 0.0, 0.0, 0.0, 0.0}, int64[1] zero = {0}, int64[1] end = {3}",
)
X = {"x": floats(3, 4)}
KEEP = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
FEEDS = {
    "added": (ADDED, X, "mask"),
    "chosen": (CHOSEN, X | {"keep": KEEP.astype(bool)}, "low"),
    "scaled": (SCALED, X | {"keep": KEEP.astype(np.float32)}, "low"),
    "twice": (TWICE, X, "mask"),
    "causal": (CAUSAL, X, "mask"),
}


class TestMasks:
    """Constants of minus infinity by another name."""

    @pytest.mark.parametrize("name", FEEDS)
    def test_is_a_mask(self, name):
        """Added, chosen, scaled from zeros and ones, added twice or cut from a table: it is found by name."""
        source, feeds, mask = FEEDS[name]

        assert frozenset({mask}) == facts(source, feeds).masks.names

    @pytest.mark.parametrize("name", FEEDS)
    def test_nothing_stays_single_for_it(self, name):
        """Neither the mask, nor the scores, nor the softmax are kept in FP32 because of the mask."""
        source, feeds, _ = FEEDS[name]

        assert {} == reasons(source, feeds)

    @pytest.mark.parametrize("name", FEEDS)
    @pytest.mark.parametrize("fmt", [FP16, BF16], ids=["fp16", "bf16"])
    def test_half_answers_as_fp32_does(self, name, fmt):
        """With everything in half, the softmax is that of FP32 to a rounding, and finite in fully masked rows."""
        source, feeds, _ = FEEDS[name]
        model = prepared(source)
        found = facts(source, feeds, fmt=fmt).masks.names
        want = run(model, feeds)["y"]

        got = _emulated(model, feeds, fmt, found)

        assert np.isfinite(got).all()
        rows = np.ptp(KEEP, axis=1) > 0 if "keep" in feeds else np.ones(3, bool)
        np.testing.assert_allclose(got[rows], want[rows], atol=5e-3 if fmt is FP16 else 5e-2)

    def test_a_fully_masked_row_stays_a_row(self):
        """A fully masked row has weights that sum to one in half, not NaN."""
        source, feeds, _ = FEEDS["scaled"]
        found = facts(source, feeds).masks.names

        got = _emulated(prepared(source), feeds, FP16, found)[2]

        assert 1.0 == pytest.approx(float(got.sum()), abs=2e-3)

    def test_the_plan_names_them(self):
        """plan.json says which constants are drawn in."""
        converted = convert(ir.to_proto(parse(ADDED)), [X])

        assert frozenset({"mask"}) == converted.plan.masks
        assert ["mask"] == json.loads(converted.plan.to_json())["masks"]
        assert 3 == converted.plan.half_nodes


def _emulated(model, feeds, fmt, masks):
    """Return the outputs of a model with everything in half and these masks saturated."""
    made = replace(plan(model, operands(model, fmt), fmt), masks=masks)
    return run(widen(apply_plan(model, made).model), feeds)["y"]


class TestNoMasks:
    """A doubtful constant is not a mask; the overflow rules protect it."""

    @pytest.mark.parametrize(
        ("source", "why"),
        [
            (
                attention("[add] masked = Add(scores, mask) [other] z = Mul(x, mask)", outputs=", float[n, 4] z"),
                "read elsewhere",
            ),
            (
                attention("[add] masked = Add(scores, mask) [copy] z = Identity(masked)", outputs=", float[n, 4] z"),
                "leaves the graph",
            ),
            (
                attention("[add] masked = Add(scores, mask)", "float[4] mask = {0.0, 0.0, 1e9, -1e9}"),
                "large and positive",
            ),
            (
                attention("[add] masked = Add(scores, mask)", "float[4] mask = {0.0, 0.0, -5000.0, -1e9}"),
                "neither small nor far below",
            ),
            (ADDED.replace("Softmax", "Relu"), "no softmax"),
            (attention("[scale] masked = Mul(scores, mask)"), "scales scores that are not a mask"),
        ],
        ids=lambda value: value if len(value) < 40 else "",
    )
    def test_is_none(self, source, why):
        """A constant that leads anywhere else, or holds anything else, keeps its reader in FP32."""
        found = facts(source, X)

        assert frozenset() == found.masks.names, why
        assert Reason.OVERFLOWING_CONSTANT in reasons(source, X).values()

    def test_scores_that_might_reach_down_to_it(self):
        """With scores beyond 1,000 a mask of -30,000 might not be far enough below them."""
        feeds = {"x": floats(3, 4, scale=2000.0)}

        assert frozenset() == facts(ADDED, feeds).masks.names

    def test_minus_infinity_needs_nothing(self):
        """-inf is -inf in half: nothing to draw in, nothing to keep."""
        model = parse(ADDED)
        mask = model.graph.initializers["mask"]
        mask.const_value = ir.tensor(np.float32([0, 0, -np.inf, -np.inf]), name="mask")

        converted = convert(ir.to_proto(model), [X])

        assert frozenset() == converted.plan.masks
        assert 3 == converted.plan.half_nodes

    def test_a_mask_that_half_holds_needs_nothing(self):
        """-10,000 is a number in half."""
        source = ADDED.replace("-1e9", "-1e4")

        assert frozenset() == facts(source, X).masks.names
        assert {} == reasons(source, X)


class TestSaturate:
    """The value of a mask constant in half."""

    @pytest.mark.parametrize("fmt", [FP16, BF16], ids=["fp16", "bf16"])
    def test_fits_twice(self, fmt):
        """Two masks on top of each other are still finite in half."""
        assert -2 * SATURATED[fmt] < fmt.max

    def test_values(self):
        """Large values are drawn in, small ones and minus infinity stay."""
        numbers = np.float32([0, -3e38, -1e9, -20_000, -np.inf])

        assert [0.0, -30_000.0, -30_000.0, -20_000.0, -np.inf] == saturate(numbers, FP16).tolist()
