"""Drift of a fleet: one replica decides for all, from the samples of all, and all follow.

Each alone would need as many samples as all together, and all that moved their traffic to FP32 at the same moment would more
than double the load.
"""

from __future__ import annotations

from collections import defaultdict

from demi.server.accuracy.monitor import verdict_on
from demi.server.accuracy.verdict import Verdict
from demi.server.joining.accuracy import assess
from demi.server.models.describe import AccuracyReport
from demi.server.models.model import State
from demi.server.models.repository import Repository
from demi.server.ray.choices import Choices, drift
from demi.server.ray.fleet import Fleet

DECIDE_S = 10.0
"""Seconds between decisions."""


class Drift:
    """The drift of all models of a deployment, as one replica sees and decides it."""

    def __init__(self, repository: Repository, fleet: Fleet, choices: Choices) -> None:
        self._repository = repository
        self._fleet = fleet
        self._choices = choices

    async def decide(self) -> None:
        """Follow what was decided, models that were loaded since included; decide, if this replica does that for all."""
        self.follow()
        if not await self._choices.leads():
            return
        by_model: dict[tuple[str, str], list[AccuracyReport]] = defaultdict(list)
        for reports in (await self._fleet.read("drift")).values():
            for report in reports:
                by_model[report.answer.name, report.answer.version].append(report)
        for (name, version), reports in by_model.items():
            if verdict := self._verdict(name, version, reports):
                self._follow(name, version, verdict)
                await self._choices.make(drift(name, version), verdict)

    def follow(self) -> None:
        """Have every model follow the verdict on it."""
        for model in self._repository:
            if known := self._choices.get(drift(model.name, model.version)):
                self._follow(model.name, model.version, known)

    def _verdict(self, name: str, version: str, reports: list[AccuracyReport]) -> Verdict | None:
        known = self._choices.get(drift(name, version))
        is_over = known is not None and known.to == "over"
        # A replica that has not followed yet still has the samples that the last verdict rests on.
        current = [report for report in reports if report.over == is_over]
        return verdict_on(assess(current), is_over=is_over) if current else None

    def _follow(self, name: str, version: str, verdict: Verdict) -> None:
        model = self._repository.get(name, version)
        if model is not None and model.state is State.READY:
            model.monitor.follow(verdict)
