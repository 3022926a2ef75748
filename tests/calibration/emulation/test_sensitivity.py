"""Sensitivities: squares add up, groups are measured first, the heaviest are split, and the total is preserved."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demi.calibration.deadline import Deadline
from demi.calibration.emulation.sensitivity import GROUPS, Survey
from tests.exporter.planning.helpers import FakeRunner


def made_up(count, heavy=(), outputs=1):
    """Return nodes n0, n1, ... with squares around 1e-6, and 1e-2 for the heavy ones."""
    return {f"n{i}": tuple((1e-2 if i in heavy else 1e-6) * (k + 1) for k in range(outputs)) for i in range(count)}


def survey(squares, **options):
    """Return a survey of made-up nodes, and its runner."""
    runner = FakeRunner(squares, **options)
    return Survey(runner, list(squares)), runner


def total(result, output=0):
    """Sum all squares at one output."""
    return sum(shares[output] for shares in result.squares.values())


def total_of(squares, prefix):
    """Sum the first squares of the nodes with these names."""
    return sum(shares[0] for name, shares in squares.items() if name.startswith(prefix))


def first(squares):
    """Return each node's square at the first output."""
    return {name: shares[0] for name, shares in squares.items()}


relaxed = settings(max_examples=30, deadline=None)


@relaxed
@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=120), st.integers(0, 60))
def test_squares_add_up(values, trials):
    """After any refinement, the sum over nodes is the error of all nodes together."""
    each, _ = survey({f"n{i}": (value,) for i, value in enumerate(values)})
    each.refine(trials)

    assert math.isclose(sum(values), total(each.result), rel_tol=1e-9)


def test_small_graphs_are_measured_one_by_one():
    """Up to 24 nodes need no groups."""
    squares = made_up(GROUPS, heavy={3})
    each, runner = survey(squares)

    assert frozenset(squares) == each.result.measured
    assert first(squares) == pytest.approx(first(each.result.squares))
    assert GROUPS + 1 == len(runner.asked)


def test_large_graphs_are_measured_in_groups():
    """1,000 nodes take 24 trials and one of all nodes; members share their group's square."""
    each, runner = survey(made_up(1000))

    assert GROUPS + 1 == len(runner.asked)
    assert GROUPS == each.result.trials
    assert frozenset() == each.result.measured
    assert each.result.squares["n0"] == each.result.squares["n1"]


def test_the_heaviest_group_is_split_first():
    """With one heavy node in a thousand, only its group is halved."""
    each, runner = survey(made_up(1000, heavy={777}))
    group = next(asked for asked in runner.asked if "n777" in asked and len(asked) < 1000)

    each.refine(2)

    assert {group} == {runner.asked[-2] | runner.asked[-1]}
    assert abs(len(runner.asked[-2]) - len(runner.asked[-1])) <= 1
    each.refine(12)
    result = each.result
    assert {"n777"} == set(result.measured) - {"n776", "n778"}
    assert 1e-2 == pytest.approx(result.square("n777"))


@pytest.mark.parametrize("trials", [0, 1, 2, 7, 30])
def test_trials_are_limited(trials):
    """A refinement stops before it exceeds its trials."""
    each, runner = survey(made_up(500))
    before = len(runner.asked)

    each.refine(trials)

    assert trials - 1 <= len(runner.asked) - before + (trials == 1) <= max(trials, 1)
    assert len(runner.asked) - before <= trials


def test_time_is_limited():
    """A refinement stops at its deadline, which is checked before every trial."""
    squares = made_up(500)
    runner = FakeRunner(squares)
    ticks = iter(range(10_000))
    each = Survey(runner, list(squares), deadline=Deadline(100, clock=lambda: float(next(ticks))))

    each.refine(1000)

    assert GROUPS + 1 < len(runner.asked) < 100
    assert math.isclose(1.0, total(each.result) / sum(square for (square,) in squares.values()), rel_tol=1e-9)


def test_out_of_time_before_the_first_group():
    """Nodes that were not measured in time share the common error; suspects count as breaking the model."""
    squares = made_up(50) | {"bad": (0.5,)}
    each = Survey(FakeRunner(squares), [f"n{i}" for i in range(50)], ["bad"], Deadline(0))

    assert 0 == each.result.trials
    assert total_of(squares, "n") / 50 == pytest.approx(each.result.square("n7"))
    assert math.inf == each.result.square("bad")


def test_suspects_are_measured_apart():
    """A suspect that breaks the model does not hide the squares of harmless nodes."""
    squares = made_up(40) | {f"s{i}": (math.inf if i == 3 else 1e-6,) for i in range(24)}
    each = Survey(FakeRunner(squares), [f"n{i}" for i in range(40)], [f"s{i}" for i in range(24)])

    assert math.isfinite(each.result.square("n39"))
    assert math.inf == each.result.square("s3")
    assert 1e-6 == pytest.approx(each.result.square("s20"))


def test_groups_that_save_most_are_split_first():
    """Of two equally heavy groups, the one whose nodes save more time is split first."""
    squares = made_up(480, heavy={5, 400})
    each, runner = survey(squares)

    each.refine(2, worth={f"n{i}": 1.0 for i in range(390, 420)})

    assert "n400" in runner.asked[-1] | runner.asked[-2]


def test_groups_that_save_nothing_are_not_split():
    """No group is split if none saves more than the minimum."""
    each, runner = survey(made_up(480, heavy={5}))
    before = len(runner.asked)

    assert 0 == each.refine(100, worth={"n5": 0.01}, least=0.02)
    assert before == len(runner.asked)


def test_refined_to_the_end():
    """With enough trials every node is measured alone, with its true square."""
    squares = made_up(100, heavy={5, 50})
    each, _ = survey(squares)

    each.refine(10_000)

    assert frozenset(squares) == each.result.measured
    assert first(squares) == pytest.approx(first(each.result.squares))


def test_groups_without_error_are_not_split():
    """Groups without error are not split."""
    squares = {f"n{i}": (1.0 if i == 0 else 0.0,) for i in range(480)}
    each, runner = survey(squares)
    before = len(runner.asked)

    each.refine(10_000)

    assert 10 >= len(runner.asked) - before


def test_surveys_are_deterministic():
    """Two surveys run the same trials in the same order."""
    runs = []
    for _ in range(2):
        each, runner = survey(made_up(300, heavy={1, 100, 200}))
        each.refine(40)
        runs.append(runner.asked)

    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("together", "factor"), [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0), (0.01, 0.25), (100.0, 4.0), (0.0, 1.0)]
)
def test_squares_are_scaled_to_the_total(together, factor):
    """Single errors are scaled to add up to the error of all nodes, within a factor of four."""
    squares = made_up(10)
    each, _ = survey(squares, together=together)

    assert factor * sum(square for (square,) in squares.values()) == pytest.approx(total(each.result))


def test_outputs_are_scaled_separately():
    """Two outputs are scaled and summed separately; a node's own square is its largest."""
    squares = made_up(8, heavy={2}, outputs=2)
    each, _ = survey(squares)

    assert squares["n2"] == pytest.approx(each.result.squares["n2"])
    assert 2e-2 == pytest.approx(each.result.square("n2"))
    assert 0.0 == each.result.square("unknown")


def test_infinite_squares_are_not_scaled():
    """A node that breaks the model alone is not scaled, and does not affect the numbers of others."""
    squares = made_up(5) | {"bad": (math.inf,)}
    each, _ = survey(squares)

    assert math.inf == each.result.square("bad")
    assert 1e-6 == pytest.approx(each.result.square("n0"))


def test_no_nodes():
    """Without nodes no trial runs."""
    each, runner = survey({})

    each.refine(10)

    assert ({}, 0, []) == (each.result.squares, each.result.trials, runner.asked)
