"""Random numbers that are equal in every run of a measuring session."""

import numpy as np
import pytest

from demi.calibration.emulation.widen import widen
from demi.calibration.random_draws import TABLE, random_nodes, with_fixed_draws
from demi.calibration.sessions import session_for
from tests.models import check, in_half, ops, prepared, run, text

NOISE = "m (float[n, 4] x) => (float[n, 4] y) { [noise] r = RandomNormalLike(x) [sum] y = Add(x, r) }"
ALL = {
    "RandomNormal": "r = RandomNormal <shape = [200, 300], mean = 2.0, scale = 3.0> ()",
    "RandomNormalLike": "r = RandomNormalLike <mean = 2.0, scale = 3.0> (x)",
    "RandomUniform": "r = RandomUniform <shape = [200, 300], low = -1.0, high = 5.0> ()",
    "RandomUniformLike": "r = RandomUniformLike <low = -1.0, high = 5.0> (x)",
    "Bernoulli": "r = Bernoulli(x)",
    "Dropout": "r = Dropout(x, ratio, yes)",
}
X = np.full((200, 300), 0.25, np.float32)


def drawing(body):
    """Return a model that draws 60,000 numbers."""
    return prepared(
        f"m (float[200, 300] x) => (float[200, 300] r) <float ratio = {{0.25}}, bool yes = {{1}}> {{ [it] {body} }}"
    )


def live(model, feeds):
    """Return the outputs of two runs of an ordinary session."""
    with session_for(model) as session:
        return session.run(feeds), session.run(feeds)


class TestFixed:
    """Sessions with fixed draws."""

    @pytest.mark.parametrize("op", ALL)
    def test_every_run_is_the_same(self, op):
        """Two runs agree, in one session and in another; without fixed draws they differ."""
        model = drawing(ALL[op])

        np.testing.assert_array_equal(run(model, {"x": X})["r"], run(model, {"x": X})["r"])
        one, other = live(model, {"x": X})
        assert not np.array_equal(one["r"], other["r"])

    @pytest.mark.parametrize("op", ALL)
    def test_distribution_is_that_of_the_operator(self, op):
        """Mean, spread and quantiles equal those of ONNX Runtime's own draws."""
        model = drawing(ALL[op])
        check(with_fixed_draws(model))
        ours, theirs = run(model, {"x": X})["r"], live(model, {"x": X})[1]["r"]

        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert ours.mean() == pytest.approx(float(theirs.mean()), abs=0.05 * float(theirs.std()))
        assert ours.std() == pytest.approx(float(theirs.std()), rel=0.02)
        levels = np.linspace(0.02, 0.98, 13)
        np.testing.assert_allclose(np.quantile(ours, levels), np.quantile(theirs, levels), atol=0.05 * theirs.std())

    @pytest.mark.parametrize("opset", [9, 12, 22])
    def test_opsets(self, opset):
        """Draws are fixed in old and new opsets."""
        model = prepared(f'<ir_version: 8, opset_import: ["" : {opset}]> {NOISE}')
        x = np.zeros((5, 4), np.float32)

        check(with_fixed_draws(model))
        np.testing.assert_array_equal(run(model, {"x": x})["y"], run(model, {"x": x})["y"])
        assert run(model, {"x": x})["y"].std() > 0.3

    def test_a_scalar(self):
        """A tensor without axes gets one draw."""
        model = prepared("m (float x) => (float y) { y = RandomNormalLike(x) }")

        assert () == run(model, {"x": np.array(0, np.float32)})["y"].shape

    def test_nothing_to_draw(self):
        """An empty tensor stays empty."""
        assert (0, 4) == run(prepared(NOISE), {"x": np.zeros((0, 4), np.float32)})["y"].shape

    def test_classes_are_drawn_by_their_probability(self):
        """Multinomial draws classes by their logits, in the requested type."""
        source = "m (float[2, 3] x) => (int64[2, 9000] y) { y = Multinomial <sample_size = 9000, dtype = 7> (x) }"
        chances = np.float32([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])

        drawn = run(prepared(source), {"x": np.log(chances)})["y"]

        assert np.int64 == drawn.dtype
        for row, chance in zip(drawn, chances, strict=True):
            np.testing.assert_allclose(np.bincount(row, minlength=3) / 9000, chance, atol=0.02)

    def test_mask_of_a_dropout(self):
        """A Dropout's mask marks the elements that it kept."""
        model = prepared("""
        m (float[n] x) => (float[n] y, bool[n] kept) <float ratio = {0.5}, bool yes = {1}>
        { y, kept = Dropout(x, ratio, yes) }
        """)
        answer = run(model, {"x": np.ones(1000, np.float32)})

        np.testing.assert_array_equal(answer["kept"], answer["y"] == 2)
        assert 400 < answer["kept"].sum() < 600

    def test_tensors_larger_than_the_table(self):
        """Draws repeat in a tensor that is larger than the table of draws."""
        drawn = run(prepared(NOISE), {"x": np.zeros((TABLE // 2, 4), np.float32)})["y"].ravel()

        np.testing.assert_array_equal(drawn[:TABLE], drawn[TABLE:])

    def test_nodes_draw_different_numbers(self):
        """Two nodes draw different numbers."""
        source = "m (float[n] x) => (float[n] a, float[n] b) { a = RandomNormalLike(x) b = RandomNormalLike(x) }"
        answer = run(prepared(source), {"x": np.zeros(1000, np.float32)})

        assert abs(np.corrcoef(answer["a"], answer["b"])[0, 1]) < 0.1

    def test_inside_a_body(self):
        """A node inside a branch is fixed as well."""
        model = prepared("""
        m (float[4] x, bool flag) => (float[4] y) {
          y = If(flag) <then_branch = a () => (float[4] t) { t = RandomNormalLike(x) }, else_branch = b () => (float[4] e) { e = Neg(x) }>
        }
        """)
        feeds = {"x": np.zeros(4, np.float32), "flag": np.array(True)}

        np.testing.assert_array_equal(run(model, feeds)["y"], run(model, feeds)["y"])

    def test_reference_and_half_draw_the_same(self):
        """The emulated half model draws the same numbers and differs only by rounding."""
        exact = run(prepared(NOISE), {"x": np.ones((100, 4), np.float32)})["y"]
        half = run(widen(prepared(in_half(NOISE))), {"x": np.ones((100, 4), np.float16)})["y"]

        np.testing.assert_allclose(half, exact, atol=4e-3)


class TestNotRandom:
    """Nodes that are not random."""

    @pytest.mark.parametrize("body", ["r = Dropout(x)", "r = Dropout(x, ratio, no)", "r = Dropout(x, zero, yes)"])
    def test_dropout_that_drops_nothing(self, body):
        """A Dropout is random only in training mode with a ratio above zero."""
        weights = "<float ratio = {0.5}, float zero = {0.0}, bool no = {0}, bool yes = {1}>"
        model = prepared(f"m (float[4] x) => (float[4] r) {weights} {{ {body} }}")

        assert [] == random_nodes(model)
        assert with_fixed_draws(model) is model

    def test_the_model_itself_is_unchanged(self):
        """Fixed draws are written into a copy of the model."""
        model = prepared(NOISE)
        before = text(model)

        assert "RandomNormalLike" not in ops(with_fixed_draws(model))
        assert before == text(model)
