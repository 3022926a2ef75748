"""Measures: values computed from sums over samples, and a bounded number of rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from demi.calibration.gate.measure import FORMULAS, MOST_NUMBERS, Measure, figure, measure_of, thin
from demi.calibration.gate.metrics import _spearman


def score(formula, *rows):
    """Return the formula's value over these rows."""
    return measure_of("m", formula, np.array(rows, dtype=float)).value


class TestFormulas:
    """Formulas that compute a value from sums."""

    def test_ratio(self):
        """A ratio is hits over labels that count."""
        assert 0.75 == score("ratio", (1, 2), (2, 2))

    def test_root_ratio(self):
        """Root ratio is the norm of all errors over the norm of all signals."""
        assert 0.5 == score("root_ratio", (9, 50), (16, 50))

    def test_no_error_is_zero(self):
        """Without an error relative L2 is 0, even without a signal; with an error and no signal it is infinite."""
        assert 0.0 == score("root_ratio", (0, 0))
        assert np.inf == score("root_ratio", (1, 0))

    def test_f1_is_the_mean_over_classes(self):
        """Class 0: 1 of 2 found, none false: 2/3. Class 1: found, and one false positive: 2/3. Class 2: absent."""
        assert 2 / 3 == pytest.approx(score("f1", (1, 1, 0, 1, 2, 0, 2, 1, 0)))

    def test_iou_is_the_mean_over_classes(self):
        """Class 0: 1 pixel common of 2. Class 1: 1 common of 2. Class 2: absent."""
        assert 0.5 == score("iou", (1, 1, 0, 1, 2, 0, 2, 1, 0))

    @given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=30))
    def test_correlation_of_ranks_is_spearmans(self, pairs):
        """The rank correlation equals SciPy's, ties included."""
        x, y = np.array(pairs).T
        if len(set(x)) < 2 or len(set(y)) < 2:
            return

        rows = _spearman(x, y)
        assert spearmanr(x, y).statistic == pytest.approx(measure_of("m", "correlation", rows).value, abs=1e-9)

    @pytest.mark.parametrize("formula", ["ratio", "f1", "iou", "correlation"])
    def test_nothing_that_counts_is_nan(self, formula):
        """Without labels that count the score is NaN, neither 0 nor 1."""
        assert np.isnan(FORMULAS[formula](np.zeros(6)))


class TestRows:
    """Rows that are kept for the bootstrap."""

    def test_few_are_kept_whole(self):
        """All rows are kept if they fit."""
        rows = np.arange(20.0).reshape(10, 2)

        assert np.array_equal(rows, thin(rows))

    def test_many_are_thinned(self):
        """At most `MOST_NUMBERS` numbers are kept, first and last row included; the value is computed from all rows."""
        rows = np.ones((MOST_NUMBERS, 2))
        rows[1, 0] = 0
        measure = measure_of("m", "ratio", rows)

        assert MOST_NUMBERS == measure.rows.size
        assert 1 - 1 / MOST_NUMBERS == measure.value

    def test_thinning_keeps_pairs(self):
        """Two runs over the same samples keep the same rows."""
        first = np.arange(3.0 * MOST_NUMBERS)[:, None]

        assert np.array_equal(thin(first) + 1, thin(first + 1))


def test_which_way_is_worse():
    """A larger error is worse, and so are fewer hits."""
    assert 1 == Measure("relative_l2", 3.0).worse_than(2.0)
    assert 1 == Measure("top1", 2.0, higher_is_better=True).worse_than(3.0)


def test_a_measure_names_its_output():
    """With several outputs a measure names its output."""
    assert "relative_l2 of `y`" == str(Measure("relative_l2", 1.0, output="y"))
    assert "model_bytes" == str(Measure("model_bytes", 1.0))


def test_figures():
    """Counts are printed as integers, small numbers with five digits."""
    assert ["128,221", "0.00060277", "0.99556"] == [figure(value) for value in (128221.0, 0.000602769, 0.995556)]
