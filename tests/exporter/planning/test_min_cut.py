"""The minimum cut is the cheapest of all assignments."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demi.exporter.planning.min_cut import Crossing, CutProblem, solve

whole = st.integers(0, 20)
real = st.floats(0, 1e-3, allow_subnormal=False)


@st.composite
def problems(draw, costs=whole):
    """Up to nine nodes, tensors between any of them, and a few nodes whose side is given."""
    count = draw(st.integers(1, 9))
    nodes = st.integers(0, count - 1)
    crossings = [
        Crossing(
            maker=maker,
            readers=tuple(
                draw(st.lists(nodes.filter(lambda node, maker=maker: node != maker), max_size=4, unique=True))
            )
            if count > 1
            else (),
            to_half=draw(costs),
            to_single=draw(costs),
            read_in_single=draw(st.booleans()),
        )
        for maker in draw(st.lists(st.none() | nodes, max_size=8))
    ]
    pinned = draw(st.dictionaries(nodes, st.booleans(), max_size=3))
    return CutProblem(
        half=[draw(costs) for _ in range(count)],
        single=[draw(costs) for _ in range(count)],
        crossings=crossings,
        must_single=frozenset(node for node, half in pinned.items() if not half),
        must_half=frozenset(node for node, half in pinned.items() if half),
    )


def assignments(problem):
    """All 2^n assignments with their costs."""
    return [(list(each), problem.cost(each)) for each in itertools.product([False, True], repeat=len(problem.half))]


relaxed = settings(max_examples=150, deadline=None)


@relaxed
@given(problems())
def test_no_assignment_is_cheaper(problem):
    """The cut costs exactly what the best of all 2^n assignments costs."""
    assert min(cost for _, cost in assignments(problem)) == problem.cost(solve(problem))


@relaxed
@given(problems(real))
def test_no_assignment_is_cheaper_in_seconds(problem):
    """The same holds for costs in fractions of a second, up to the scaling to integers."""
    best = min(cost for _, cost in assignments(problem))
    total = sum(problem.half) + sum(problem.single) + sum(c.to_half + c.to_single for c in problem.crossings)

    assert pytest.approx(best, rel=1e-6, abs=1e-6 * total) == problem.cost(solve(problem))


@relaxed
@given(problems())
def test_ties_go_to_half(problem):
    """Of all cheapest assignments the cut is the one whose half nodes contain those of every other."""
    costs = assignments(problem)
    best = min(cost for _, cost in costs)
    found = solve(problem)

    for other, cost in costs:
        if cost == best:
            assert all(ours or not theirs for ours, theirs in zip(found, other, strict=True))


def test_nothing_to_gain_is_half():
    """A node that costs the same either way becomes half."""
    assert [True] == solve(CutProblem([3.0], [3.0], []))


def test_no_nodes():
    """A problem without nodes has the empty answer."""
    assert [] == solve(CutProblem([], [], []))


def test_a_cast_is_paid_once_however_many_read_it():
    """Three readers that gain 2 each share one cast of 5: half pays; with two readers it would not."""

    def gain(readers):
        count = len(readers) + 1
        crossing = Crossing(0, readers, to_half=5, to_single=100)
        return solve(CutProblem([0] * count, [2] * count, [crossing], must_single=frozenset({0})))

    assert [False, True, True, True] == gain((1, 2, 3))
    assert [False, False, False] == gain((1, 2))


def test_a_cast_back_is_paid_once_however_many_read_it():
    """Two single readers of a half tensor share its cast to single."""
    crossing = Crossing(0, (1, 2), to_half=100, to_single=3)
    problem = CutProblem([0, 9, 9], [4, 0, 0], [crossing])

    assert [True, False, False] == solve(problem)
    assert 3 == problem.cost([True, False, False])


def test_graph_output_is_read_in_single():
    """A node whose result is returned in single pays for the cast, and stays single when that costs more."""
    dear, cheap = (CutProblem([1], [3], [Crossing(0, (), 9, back, read_in_single=True)]) for back in (5, 1))

    assert [False] == solve(dear)
    assert [True] == solve(cheap)


def test_graph_input_is_cast_to_half():
    """A graph input costs a cast when a node reads it in half."""
    dear, cheap = (CutProblem([1], [3], [Crossing(None, (0,), into, 0)]) for into in (5, 1))

    assert [False] == solve(dear)
    assert [True] == solve(cheap)


def test_type_transparent_nodes_follow_their_neighbours():
    """A node without costs takes the precision that needs no cast."""
    chain = [Crossing(0, (1,), 5, 5), Crossing(1, (2,), 5, 5)]

    for side in (True, False):
        musts = {"must_half" if side else "must_single": frozenset({0, 2})}
        assert [side] * 3 == solve(CutProblem([0, 0, 0], [0, 0, 0], chain, **musts))


@pytest.mark.parametrize(("half", "must"), [(True, "must_half"), (False, "must_single")])
def test_musts_are_kept_at_any_price(half, must):
    """A node with a given precision keeps it at any cost."""
    problem = CutProblem([1e9 if half else 0], [0 if half else 1e9], [], **{must: frozenset({0})})

    assert [half] == solve(problem)
    assert float("inf") == problem.cost([not half])


def test_a_node_of_unlimited_cost_stays_single():
    """A node with an infinite cost in half stays single."""
    assert [False, True] == solve(CutProblem([float("inf"), 1], [7, 2], [Crossing(0, (1,), 0, 0)]))


def test_costs_next_to_nothing():
    """Costs are compared however small they are, and those that are nothing at all are ties."""
    tiny = 1e-300

    assert [False, True] == solve(CutProblem([tiny, 0.0], [0.0, tiny], []))
    assert [True] == solve(CutProblem([2.0**-1074], [0.0], []))


def test_a_long_chain():
    """3,000 nodes in a row, every tenth of which must be single, are solved; islands of nine that gain more than two
    casts become half."""
    count = 3000
    chain = [Crossing(i, (i + 1,), 4, 4) for i in range(count - 1)]
    problem = CutProblem([1] * count, [2] * count, chain, must_single=frozenset(range(0, count, 10)))

    found = solve(problem)

    assert [bool(i % 10) for i in range(count)] == found
