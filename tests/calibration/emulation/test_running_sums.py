"""Sums and products that grow step by step: the emulator rounds after each step, as half kernels do."""

import ml_dtypes
import numpy as np
import pytest

from demi.accuracy.compare import relative_l2
from demi.calibration.emulation.kernels import spell_out
from demi.calibration.emulation.widen import widen
from demi.calibration.graph_pieces import ORIGIN
from demi.exporter.passes.lower import apply_plan
from tests.exporter.planning.helpers import emulator, floats, plan
from tests.models import check, in_half, node, ops, prepared, run

ELEMENTS = """
<ir_version: 10, opset_import: ["" : 18]>
m (float[3, 4] x, int64[n, 4] at, float[n, 4] updates) => (float[3, 4] y)
{ [it] y = ScatterElements <axis = AXIS, reduction = "REDUCTION"> (x, at, updates) }
"""
ROWS = """
<ir_version: 10, opset_import: ["" : 18]>
m (float[3, 4] x, int64[n, 1] at, float[n, 4] updates) => (float[3, 4] y)
{ [it] y = ScatterND <reduction = "REDUCTION"> (x, at, updates) }
"""
COUNT = 400


def scatter(source, reduction, axis=0):
    """Return the text with a reduction and an axis filled in."""
    return source.replace("REDUCTION", reduction).replace("AXIS", str(axis))


def feeds(columns, seed=0):
    """Return numbers near one, three of them scattered to each index."""
    rng = np.random.default_rng(seed)
    updates = (0.9 + 0.2 * rng.random((COUNT, 4))).astype(np.float32)
    return {"x": np.ones((3, 4), np.float32), "at": rng.integers(0, 3, (COUNT, columns)), "updates": updates}


def step_by_step(given, kind, reduction):
    """Compute in NumPy's half arithmetic, one update after the other."""
    y, updates = given["x"].astype(kind), given["updates"].astype(kind)
    for places, row in zip(given["at"], updates, strict=True):
        for column, value in enumerate(row):
            place = places[column % len(places)], column
            y[place] = y[place] + value if reduction == "add" else y[place] * value
    return y.astype(np.float32)


def rounded(given, kind):
    """Return the same inputs, rounded to the half type."""
    return {
        name: each.astype(kind).astype(each.dtype) if each.dtype.kind == "f" else each for name, each in given.items()
    }


def cast_around(source, number):
    """Return the text with casts to half and back around its one node."""
    head, body = source.split("{ [it] ")
    inside = body.replace("(x,", "(xh,").replace("updates)", "uh)").replace("y =", "yh =")
    casts = f"xh = Cast <to = {number}> (x) uh = Cast <to = {number}> (updates)"
    return f"{head}{{ {casts} [it] {inside.rstrip().rstrip('}')} y = Cast <to = 1> (yh) }}"


class TestScatters:
    """Additions and products scattered to one index."""

    @pytest.mark.parametrize("reduction", ["add", "mul"])
    @pytest.mark.parametrize(("kind", "number"), [(np.float16, 10), (ml_dtypes.bfloat16, 16)])
    @pytest.mark.parametrize(("source", "columns"), [(ELEMENTS, 4), (ROWS, 1)], ids=["elements", "rows"])
    def test_every_step_is_rounded(self, source, columns, kind, number, reduction):
        """The emulator equals NumPy's half arithmetic bit for bit, where FP32 is far off."""
        given = rounded(feeds(columns), kind)
        model = prepared(cast_around(scatter(source, reduction), number))

        got = run(widen(model), given)["y"]

        np.testing.assert_array_equal(step_by_step(given, kind, reduction), got)
        exact = step_by_step(given, np.float64, reduction)
        once = run(widen(model, kernels=False), given)["y"]
        assert relative_l2(exact, got) > 2 * relative_l2(exact, once)

    @pytest.mark.parametrize("axis", [0, 1, -1, -2])
    def test_any_axis(self, axis):
        """In FP32 the expansion equals the operator along any axis."""
        rng = np.random.default_rng(1)
        rows = (5, 4) if axis % 2 == 0 else (3, 4)
        given = {"x": floats(3, 4), "at": rng.integers(0, 3, rows), "updates": floats(*rows)}
        model = prepared(scatter(ELEMENTS, "add", axis).replace("[n, 4]", "[n, m]"))
        changed = spell_out(model.clone(), lambda node: True)

        check(changed)
        assert "Scan" in ops(changed)
        np.testing.assert_allclose(run(changed, given)["y"], run(model, given)["y"], rtol=1e-5, atol=1e-6)

    def test_indices_of_several_components(self):
        """Indices may have several components and any shape."""
        model = prepared("""
        <ir_version: 10, opset_import: ["" : 18]>
        m (float[3, 4] x, int64[2, 5, 2] at, float[2, 5] updates) => (float[3, 4] y)
        { y = ScatterND <reduction = "add"> (x, at, updates) }
        """)
        rng = np.random.default_rng(2)
        given = {"x": floats(3, 4), "at": rng.integers(0, 3, (2, 5, 2)), "updates": floats(2, 5)}

        got = run(spell_out(model.clone(), lambda node: True), given)["y"]

        np.testing.assert_allclose(got, run(model, given)["y"], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("reduction", ["none", "max", "min"])
    def test_exact_scatters_are_not_expanded(self, reduction):
        """Scatters that select one of two halves are exact and are not expanded."""
        model = prepared(scatter(ELEMENTS, reduction))

        assert ["ScatterElements"] == ops(spell_out(model, lambda node: True))


class TestRunning:
    """Running sums and products, and sums of many tensors."""

    @pytest.mark.parametrize("exclusive", [0, 1])
    @pytest.mark.parametrize("reverse", [0, 1])
    def test_running_product(self, exclusive, reverse):
        """CumProd rounds after every factor."""
        x = (0.9 + 0.2 * np.random.default_rng(0).random(300)).astype(np.float16)
        model = prepared(
            in_half(f"""
        <ir_version: 12, opset_import: ["" : 26]>
        m (float[300] x) => (float[300] y) <int64 axis = {{0}}>
        {{ [it] y = CumProd <exclusive = {exclusive}, reverse = {reverse}> (x, axis) }}
        """)
        )
        ordered = x[::-1] if reverse else x
        product = np.multiply.accumulate(ordered, dtype=np.float16)
        product = np.concatenate([np.ones(1, np.float16), product[:-1]]) if exclusive else product

        got = run(widen(model), {"x": x})["y"]

        np.testing.assert_array_equal(product[::-1] if reverse else product, got.astype(np.float16))

    @pytest.mark.parametrize("op", ["Sum", "Mean"])
    def test_sum_of_many_tensors(self, op):
        """Sum adds one tensor after the other and rounds each partial sum."""
        names = [f"x{number}" for number in range(9)]
        inputs = ", ".join(f"float[64] {name}" for name in names)
        model = prepared(in_half(f"m ({inputs}) => (float[64] y) {{ y = {op}({', '.join(names)}) }}"))
        given = {name: np.abs(floats(64, seed=seed)).astype(np.float16) for seed, name in enumerate(names)}
        total = np.zeros(64, np.float16)
        for each in given.values():
            total = total + each
        expected = total / np.float16(9) if op == "Mean" else total

        np.testing.assert_array_equal(expected, run(widen(model), given)["y"].astype(np.float16))

    @pytest.mark.parametrize("p", [1, 2])
    def test_norm_is_stored(self, p):
        """LpNormalization divides by a rounded norm."""
        model = prepared(in_half(f"m (float[4, 300] x) => (float[4, 300] y) {{ y = LpNormalization <p = {p}> (x) }}"))
        x = floats(4, 300).astype(np.float16)
        norm = np.linalg.norm(x.astype(np.float32), ord=p, axis=1, keepdims=True).astype(np.float16)

        np.testing.assert_array_equal(x / norm, run(widen(model), {"x": x})["y"].astype(np.float16))

    def test_norm_of_zeros(self):
        """LpNormalization of zero rows returns zeros."""
        model = prepared("m (float[2, 3] x) => (float[2, 3] y) { y = LpNormalization(x) }")

        assert 0 == np.abs(run(spell_out(model, lambda node: True), {"x": np.zeros((2, 3), np.float32)})["y"]).max()


class TestLoops:
    """Values that a loop carries between iterations."""

    def test_loop_carried_sum(self):
        """Additions in a loop's body are rounded in every iteration: a count stops at 2,048."""
        model = prepared("""
        m (int64 turns, float x) => (float y) {
          yes = Constant <value: tensor = bool {1}> ()
          y = Loop(turns, yes, x) <body = b (int64 turn, bool going, float before) => (bool still, float after)
            <float one = {1.0}> { still = Identity(going) [add] after = Add(before, one) }>
        }
        """)
        mixed = apply_plan(model, plan(model, {"add"})).model

        assert 2048.0 == run(widen(mixed), {"turns": np.array(4000), "x": np.array(0, np.float32)})["y"]


class TestSwitches:
    """The switchable emulator rounds in the same way."""

    @pytest.mark.parametrize(("source", "columns"), [(ELEMENTS, 4), (ROWS, 1)], ids=["elements", "rows"])
    def test_switched_on_and_off(self, source, columns):
        """The switchable emulator equals the half model with the switch on, and FP32 with it off."""
        model = prepared(scatter(source, "add"))
        given = rounded(feeds(columns), np.float16)
        with emulator(model) as switchable:
            on, off = switchable.run({"it"}, given)["y"], switchable.run(frozenset(), given)["y"]

        np.testing.assert_array_equal(step_by_step(given, np.float16, "add"), on)
        np.testing.assert_allclose(run(model, given)["y"], off, rtol=1e-6)
        assert "it" == node(spell_out(model.clone(), lambda node: True), "it_demi0").metadata_props[ORIGIN]
