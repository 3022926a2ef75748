"""The target of the planner: as much of the budget as the emulator verifies, found in a few attempts."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from typing import Protocol

from demi.accuracy.compare import Comparison
from demi.exporter.planning.planner import Assignment, Planner

AIM = 0.7
"""The first target for the predicted share of the budget: other inputs than the samples may be worse."""

VERIFIED = 0.9
"""The share of the budget that a plan may use on new inputs, with 95% confidence."""

UNDERUSED = 0.75
"""Share of `AIM`: a plan that uses less is followed by one with a higher target."""

NEAR_FAILURE = 0.95
"""Share of a failed target: targets above it are not tried."""

NEGLIGIBLE = 0.02
"""Share of the possible gain that is not worth more measurements."""

NOT_WORTH_VERIFYING = 0.005
"""Share of the possible gain that is not worth the verification of another plan."""


WORTH_CLIMBING = 0.2
"""Share of the possible gain that is worth higher targets even after a plan that uses its share of the budget."""

CLIMB = 1.3
"""Least factor from a verified target to the next: errors scatter around the predicted ones, and the next plan may pass."""


class Verifier(Protocol):
    """Protocol of plan verification."""

    def verify(self, half: AbstractSet[str]) -> tuple[Comparison, float]:
        """Compare the outputs with these nodes in half; also return the share of the budget that new inputs may use."""
        ...


ATTEMPTS = 6
"""Maximum number of plans to verify before the best of them is taken."""


def is_verified(verifier: Verifier, assignment: Assignment) -> bool:
    """Return True if an assignment is within the budget under the emulator, and other inputs will most likely be, too."""
    comparison, load = verifier.verify(assignment.half)
    return bool(comparison) and load <= VERIFIED


def plan_within(planner: Planner, verifier: Verifier, start: float = AIM) -> Assignment:
    """Return the cheapest assignment that also verifies under the emulator.

    The target begins with `start`. It falls while plans fail, and rises while they use much less of the budget than
    predicted; between a verified and a failed target, their geometric mean is next. The search ends if nothing is left
    to gain. If no plan verifies, the last assignment is returned, and the final check decides.
    """
    target, failed = start, math.inf
    assignment = planner.assign(target)
    verified: Assignment | None = None
    for attempt in range(1, ATTEMPTS + 1):
        comparison, load = verifier.verify(assignment.half)
        predicted = max(assignment.predicted, default=0.0)
        if comparison and load <= VERIFIED:
            verified = assignment
            if assignment.half == assignment.cheapest or assignment.forgone <= (
                WORTH_CLIMBING if load >= UNDERUSED * AIM else NEGLIGIBLE
            ):
                break
            aimed = max(target, predicted) * min(max(AIM / max(load, 1e-9), CLIMB), 2.0)
            target = aimed if aimed < failed else math.sqrt(max(target, predicted) * failed)
        else:
            failed = min(failed, target, predicted)
            if verified is not None:
                target = math.sqrt(max(verified.predicted, default=0.0) * failed)
            else:
                target = failed * _step_back(load, attempt)
        if failed < math.inf and target >= NEAR_FAILURE * failed:
            break
        again = planner.assign(target)
        if verified is not None and (
            again.half == assignment.half or verified.forgone - again.forgone < NOT_WORTH_VERIFYING
        ):
            break
        assignment = again
    return verified or assignment


def _step_back(load: float, attempt: int) -> float:
    """Return the factor for the target after a plan that failed with this load, if none has verified yet.

    A failed limit that is not a size, such as a top-1 share, leaves the distance unknown: the steps grow, so that a few
    of them reach any target. With a known load they grow only from the third attempt on, when the error did not fall as
    predicted.
    """
    if not math.isfinite(load):
        return min(0.8**attempt, 0.5)
    if load <= VERIFIED:
        return 0.8**attempt
    return min(0.8 ** max(0, attempt - 2), 0.9 * VERIFIED / load)
