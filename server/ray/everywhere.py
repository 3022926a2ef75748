"""Answers and changes that concern all replicas: each is asked for its own, and the answers are joined."""

from __future__ import annotations

from typing import Any

from demi.server.joining.accuracy import join_accuracy
from demi.server.joining.index import join_index
from demi.server.joining.metrics import join_metrics
from demi.server.joining.statistics import join_statistics
from demi.server.models.control import Control, ModelControl
from demi.server.protocol.schemas import AccuracyAnswer, IndexEntry, StatsAnswer
from demi.server.ray.choices import Choices, served, shadow_share
from demi.server.ray.fleet import Fleet
from demi.server.telemetry.overview import Overview, OwnOverview


class FleetOverview(Overview):
    """Answers about the models of all replicas."""

    def __init__(self, fleet: Fleet, choices: Choices) -> None:
        self._fleet = fleet
        self._choices = choices

    async def statistics(self, name: str | None = None, version: str | None = None) -> StatsAnswer:
        """Return the statistics of all models, of all versions of one, or of one version."""
        return join_statistics((await self._fleet.read("statistics", name, version)).values())

    async def index(self, *, ready_only: bool) -> list[IndexEntry]:
        """Return the repository index: all model versions, or those that are ready on every replica."""
        joined = join_index(list((await self._fleet.read("index")).values()))
        return [entry for entry in joined if entry.state == "READY" or not ready_only]

    async def accuracy(self, name: str, version: str | None = None) -> AccuracyAnswer:
        """Return the accuracy of a model version over the comparisons of all replicas."""
        return join_accuracy(list((await self._fleet.read("accuracy", name, version)).values()))

    async def set_shadow(self, name: str, version: str | None, share: float) -> AccuracyAnswer:
        """Set the share of a model's requests that are sampled, on replicas that start later as well."""
        await self._fleet.change("set_shadow", name, version, share)
        await self._choices.make(shadow_share(name, version), share)
        return await self.accuracy(name, version)

    async def metrics(self) -> bytes:
        """Return the metrics of all replicas, each sample labelled with its replica."""
        return join_metrics(await self._fleet.read("metrics"))


class FleetControl(ModelControl):
    """Loads and unloads models on all replicas, on those that start later as well.

    The rules that choose among versions are a file in the model's folder, which every replica follows.
    """

    def __init__(self, fleet: Fleet, choices: Choices, own: Control) -> None:
        self._fleet = fleet
        self._choices = choices
        self.traffic = own.traffic

    async def load(self, name: str, version: str | None = None) -> None:
        """Load a model, or one version, on all replicas. Raises the first replica's error, and then asks no other."""
        await self._fleet.change("load", name, version)
        await self._choices.make(served(name, version), True)

    async def unload(self, name: str, version: str | None = None) -> None:
        """Unload a model, or one version, on all replicas; those that start later do not serve it either."""
        await self._fleet.change("unload", name, version)
        await self._choices.make(served(name, version), False)


async def answer_alone(overview: OwnOverview, control: Control, question: str, *arguments: Any) -> Any:
    """Return this replica's answer to a question of `Fleet`. Raises a DemiError as the ordinary server does."""
    match question, arguments:
        case "statistics", (name, version):
            return await overview.statistics(name, version)
        case "index", ():
            return await overview.index(ready_only=False)
        case "accuracy", (name, version):
            return overview.report(name, version)
        case "drift", ():
            return overview.reports()
        case "set_shadow", (name, version, share):
            await overview.set_shadow(name, version, share)
        case "metrics", ():
            return await overview.metrics()
        case "load", (name, version):
            await control.load(name, version)
        case "unload", (name, version):
            await control.unload(name, version)
        case _:
            raise ValueError(f"no such question: {question}{arguments}")
    return None
