"""The choice of a plan: how finely sensitivities are measured before the cut is solved again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from demi.exporter.planning.choosing import IDLE_ROUNDS, TRIALS_PER_ROUND, refine, second_target
from demi.exporter.planning.verified_plan import AIM


@dataclass(frozen=True)
class Found:
    """The parts of an assignment that refinement reads."""

    forgone: float
    predicted: tuple[float, ...] = (0.5,)


@dataclass
class FakePlanner:
    """Fake planner whose solutions forgo these shares of the gain, one after the other."""

    shares: Iterator[float]

    def use_sensitivities(self, sensitivities: Any) -> None:
        """Take nothing from them."""

    def worth(self, found: Found) -> dict[str, float]:
        """Return nothing, for the fake survey."""
        return {}

    def assign(self, target: float) -> Found:
        """Return the next solution."""
        return Found(next(self.shares))


@dataclass
class FakeSurvey:
    """Fake survey that can always be refined, and counts how often it was."""

    result: Any = None
    rounds: list[int] = field(default_factory=list)

    def refine(self, trials: int, worth: Any, least: float) -> int:
        """Count a round."""
        self.rounds.append(trials)
        return 1


def refined(*shares: float) -> tuple[bool, int]:
    """Refine after a plan that forgoes 0.5; return whether it was improved, and the number of rounds."""
    survey = FakeSurvey()
    return refine(survey, FakePlanner(iter(shares)), Found(0.5), 10 * TRIALS_PER_ROUND, None), len(survey.rounds)  # type: ignore[arg-type]


def test_refinement_goes_on_while_it_helps():
    """All trials are used while each round finds a cheaper solution."""
    assert (True, 10) == refined(*(0.45 - 0.01 * step for step in range(10)))


def test_refinement_ends_when_solutions_get_dearer():
    """Finer sensitivities that only scatter are not measured to the end."""
    assert (False, IDLE_ROUNDS) == refined(*[0.55] * 10)


def test_refinement_ends_when_nothing_is_forgone():
    """Nothing is measured once the cheapest plan is found."""
    assert (True, 1) == refined(0.01)


@pytest.mark.parametrize(
    ("forgone", "is_settled", "expected"),
    [(0.5, True, AIM), (0.5, False, AIM), (0.1, True, None), (0.1, False, 0.4)],
    ids=["much-is-left", "much-is-left-and-cheaper", "settled", "cheaper"],
)
def test_the_cut_is_solved_again_where_that_may_help(forgone, is_settled, expected):
    """A settled plan stays, unless it forgoes much: then the whole budget is tried with the refined sensitivities."""
    assert expected == second_target(Found(forgone, (0.4,)), is_settled=is_settled)
