"""Samples for the trials of a search: few, and those with the largest errors in half."""

import contextlib

import numpy as np
import pytest

from demi.accuracy.budget import Budget
from demi.calibration.emulation.trials import TrialRunner
from demi.calibration.observe import observe
from demi.calibration.profile import Range, RangeProfile
from demi.calibration.samples import Samples
from demi.exporter.planning.trial_samples import (
    EXPLAINING_ELEMENTS,
    SEARCH_ELEMENTS,
    SIDE_BY_SIDE_ELEMENTS,
    TRIAL_ELEMENTS,
    TRIAL_SETS,
    batch_rows,
    cut_rows,
    explaining_runner,
    runs_at_once,
    scale_to_rows,
    search_runner,
    trial_feeds,
    verifying_runner,
)
from tests.exporter.planning.helpers import emulator, floats, operands, samples
from tests.models import MLP, prepared

SQUARE = "m (float[n, k] x) => (float[n, k] y) { [square] y = Mul(x, x) }"
FIXED = "m (float[n, 4] x) => (float[n, 4] y) <int64[2] all = {512, 4}> { [same] a = Reshape(x, all) [square] y = Mul(a, a) }"
FULL = SEARCH_ELEMENTS // 4


@contextlib.contextmanager
def running(source, *feeds):
    """Open the runner of a search on these sets, with the runner on the whole sets."""
    model = prepared(source)
    with emulator(model) as each:
        whole = TrialRunner(each, feeds, Budget())
        verifier = verifying_runner(model, whole)
        profile = observe(model, samples(*feeds))
        yield search_runner(model, whole, verifier, frozenset(operands(model)), profile, feeds), whole


class TestRunsAtOnce:
    """Number of trials side by side."""

    @pytest.mark.parametrize(
        ("elements", "runs"), [(1, 4), (SIDE_BY_SIDE_ELEMENTS // 3, 3), (SIDE_BY_SIDE_ELEMENTS, 1)]
    )
    def test_one_per_core_while_memory_lasts(self, monkeypatch, elements, runs):
        """A model with small tensors has a run on each core, one with large tensors as many as fit together."""
        monkeypatch.setattr("demi.exporter.planning.trial_samples.usable_cores", lambda: 4)
        profile = RangeProfile("the test", 1, {"y": Range(elements_per_set=elements), "x": Range(elements_per_set=1)})

        assert runs == runs_at_once(prepared(SQUARE), profile)

    def test_more_than_memory(self):
        """There is always one."""
        profile = RangeProfile("the test", 1, {"y": Range(elements_per_set=SIDE_BY_SIDE_ELEMENTS * 9)})

        assert 1 == runs_at_once(prepared(SQUARE), profile)


class TestTrialFeeds:
    """Sets for verifying candidate plans."""

    def test_the_first_sets(self):
        """Only the first few sets are used."""
        feeds = [{"x": np.zeros(3)} for _ in range(9)]

        assert feeds[:TRIAL_SETS] == trial_feeds(samples(*feeds))

    def test_large_sets(self):
        """Only the first of very large sets is used."""
        feeds = [{"x": np.broadcast_to(np.float32(0), TRIAL_ELEMENTS + 1)} for _ in range(3)]

        assert 1 == len(trial_feeds(samples(*feeds)))


class TestSearchRunner:
    """Samples of the many trials of a search."""

    def test_small_samples_are_taken_as_they_are(self):
        """If all sets fit, all are used."""
        with running(MLP, {"x": floats(8, 4)}, {"x": floats(3, 4)}) as (runner, whole):
            assert runner is whole

    def test_the_rows_that_add_most_to_the_error(self):
        """Half of the rows of a set that is too large are kept, the one with the largest error first."""
        x = np.zeros((8, FULL), np.float32)
        x[5] = floats(FULL)

        with running(SQUARE, {"x": x}) as (runner, _):
            assert 4 == len(runner.feeds)
            assert np.array_equal(x[5:6], runner.feeds[0]["x"])

    def test_tiny_answers_do_not_count(self):
        """A row whose outputs are a billionth of the others' is not selected, however large its relative error is."""
        x = np.concatenate([floats(4, FULL), 1e-6 * floats(4, FULL)])

        with running(SQUARE, {"x": x}) as (runner, _):
            assert all(np.abs(feeds["x"]).max() > 1 for feeds in runner.feeds)

    def test_a_model_of_a_fixed_number_of_rows(self):
        """A model that cannot run on fewer rows is tried on whole sets."""
        source = FIXED.replace("4]", "2048]").replace("512, 4}", "2048, 2048}")

        with running(source, {"x": floats(2048, 2048)}) as (runner, _):
            assert (2048, 2048) == runner.feeds[0]["x"].shape


class TestRows:
    """Cutting a set along its first axis."""

    def test_cut(self):
        """A quarter of eight rows is two, and nothing is lost."""
        parts = cut_rows(prepared(MLP), {"x": floats(8, 4)}, 0.25)

        assert [2, 2, 2, 2] == [len(part["x"]) for part in parts]
        assert np.array_equal(floats(8, 4), np.concatenate([part["x"] for part in parts]))

    def test_at_least_one_row(self):
        """A part has at least one row, however small the share is."""
        assert 3 == len(cut_rows(prepared(MLP), {"x": floats(3, 4)}, 1e-9))

    def test_inputs_that_share_no_axis(self):
        """Inputs with different or fixed first axes are not cut."""
        source = "m (float[n, 4] a, float[m, 4] b) => (float[n, 4] y) { y = Identity(a) }"
        feeds = {"a": floats(8, 4), "b": floats(2, 4)}

        assert batch_rows(prepared(source), feeds) is None
        assert [feeds] == cut_rows(prepared(source), feeds, 0.1)
        assert batch_rows(prepared("m (float[4] a) => (float[4] y) { y = Identity(a) }"), {"a": floats(4)}) is None

    @pytest.mark.parametrize(
        ("shapes", "scale"),
        [([(4, 3)], 8.0), ([(64, 3)], 1.0), ([(4, 3), (8, 3)], 4.0), ([()], 1.0)],
        ids=["small batch", "large batch", "largest counts", "no batch"],
    )
    def test_scale(self, shapes, scale):
        """Sets of fewer than 32 rows are scaled up, larger ones are not scaled down."""
        feeds = tuple({"x": np.zeros(shape)} for shape in shapes)

        assert scale == scale_to_rows(Samples(feeds, "").feeds, 32)

    def test_inputs_of_different_first_axes_are_no_batch(self):
        """If inputs have different first axes, nothing is scaled."""
        assert 1.0 == scale_to_rows([{"x": np.zeros((2, 3)), "y": np.zeros((5, 3))}], 32)


class TestBudgetOfSomeSamples:
    """The budget is that of all samples, also where a few of them are run."""

    def test_small_outputs_may_use_a_larger_share_of_theirs(self):
        """A sample whose outputs are a hundredth of the others' may be a hundred times as wrong."""
        with emulator(prepared(SQUARE)) as each:
            whole = TrialRunner(each, [{"x": floats(64, 8)}, {"x": 0.1 * floats(64, 8, seed=1)}], Budget())
            large, small = (whole.on([feeds]) for feeds in whole.feeds)

            assert 0.01 == whole.scale("y")
            assert 0.008 > large.scale("y")
            assert pytest.approx(100, rel=0.3) == small.scale("y") / large.scale("y")

    def test_shares_of_single_samples_are_their_contributions(self):
        """The squared errors of the samples, in units of the budget, have the mean that all together show."""
        with emulator(prepared(SQUARE)) as each:
            whole = TrialRunner(each, [{"x": scale * floats(64, 8, seed=1)} for scale in (1.0, 0.1, 0.01)], Budget())
            half = frozenset({"square"})
            alone = [whole.on([feeds]).shares(half)[0] for feeds in whole.feeds]

            assert pytest.approx(whole.shares(half)[0], rel=1e-5) == np.mean(alone)

    def test_zeros_keep_the_limit(self):
        """Outputs of zeros have no size to compare with."""
        with emulator(prepared(SQUARE)) as each:
            whole = TrialRunner(each, [{"x": floats(64, 8)}, {"x": np.zeros((64, 8), np.float32)}], Budget())

            assert 0.01 == whole.on([whole.feeds[1]]).scale("y")


class TestExplainingRunner:
    """Samples that explain the error of a plan that is chosen already."""

    SOURCE = "m (float[1, h, w] x) => (float[1, h, w] y) { [square] y = Mul(x, x) }"

    def explaining(self, *feeds):
        """Return the sets of the runner for these samples."""
        model = prepared(self.SOURCE)
        with emulator(model) as each:
            whole = TrialRunner(each, feeds, Budget())
            profile = observe(model, samples(*feeds))
            return explaining_runner(model, whole, frozenset({"square"}), profile, feeds).feeds

    def test_the_set_that_adds_most(self):
        """One small set is taken as it is."""
        feeds = [{"x": scale * floats(1, 64, 64)} for scale in (0.1, 1.0, 0.01)]

        assert [feeds[1]] == self.explaining(*feeds)

    def test_a_large_set_is_cropped(self):
        """Of a large set the middle is enough."""
        side = int((4 * EXPLAINING_ELEMENTS) ** 0.5)
        (part,) = self.explaining({"x": floats(1, side, side)})

        assert EXPLAINING_ELEMENTS >= part["x"].size > EXPLAINING_ELEMENTS / 2

    def test_a_crop_without_error_explains_nothing(self):
        """A sample whose middle is empty is left whole."""
        side = int((4 * EXPLAINING_ELEMENTS) ** 0.5)
        x = floats(1, side, side)
        x[:, side // 4 : -side // 4] = 0

        assert [(1, side, side)] == [feeds["x"].shape for feeds in self.explaining({"x": x})]
