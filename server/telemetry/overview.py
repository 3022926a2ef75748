"""Answers about all that a server does: statistics, accuracy, metrics and the repository index.

A server answers from its own models. Where several servers stand behind one address, the answer of any of them is that of
all: `demi.server.ray` has an overview of its own, which asks the others and joins (`demi.server.joining`).
"""

from __future__ import annotations

from typing import Protocol

from demi.server.errors import RequestError
from demi.server.models.describe import AccuracyReport, report_accuracy, repository_index, statistics_of
from demi.server.models.model import State
from demi.server.models.repository import Repository
from demi.server.protocol.schemas import AccuracyAnswer, IndexEntry, StatsAnswer
from demi.server.telemetry.metrics import create_registry, write_metrics


class Overview(Protocol):
    """Answers to HTTP's and gRPC's questions about models beyond a single request. Each method raises NotFoundError for unknown names."""

    async def statistics(self, name: str | None = None, version: str | None = None) -> StatsAnswer:
        """Return the statistics of all models, of all versions of one, or of one version."""

    async def index(self, *, ready_only: bool) -> list[IndexEntry]:
        """Return the repository index: all model versions, or those that are ready."""

    async def accuracy(self, name: str, version: str | None = None) -> AccuracyAnswer:
        """Return the accuracy of a model version. Raises UnavailableError before it is loaded."""

    async def set_shadow(self, name: str, version: str | None, share: float) -> AccuracyAnswer:
        """Set the share of a model's requests that are sampled, and return its accuracy.

        Raises RequestError for a model without an FP32 reference.
        """

    async def metrics(self) -> bytes:
        """Return all metrics in Prometheus' text format."""


class OwnOverview(Overview):
    """The overview of one server, from its repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._registry = create_registry(repository)

    async def statistics(self, name: str | None = None, version: str | None = None) -> StatsAnswer:
        """Return the statistics of all models, of all versions of one, or of one version."""
        return statistics_of(self._repository, name, version)

    async def index(self, *, ready_only: bool) -> list[IndexEntry]:
        """Return the repository index: all model versions, or those that are ready."""
        return repository_index(self._repository, ready_only=ready_only)

    async def accuracy(self, name: str, version: str | None = None) -> AccuracyAnswer:
        """Return the accuracy of a model version. Raises UnavailableError before it is loaded."""
        return self.report(name, version).answer

    async def set_shadow(self, name: str, version: str | None, share: float) -> AccuracyAnswer:
        """Set the share of a model's requests that are sampled, and return its accuracy."""
        found = self._repository.find(name, version)
        found.check_ready()
        if found.shadow is None:
            raise RequestError(
                f"model `{name}` cannot be sampled: its bundle does not hold both a half model and an FP32 reference"
            )
        found.shadow.share = share
        return self.report(name, version).answer

    async def metrics(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return write_metrics(self._registry)

    def report(self, name: str, version: str | None = None) -> AccuracyReport:
        """Return the accuracy of a model version with the sums that other servers' can be added to."""
        return report_accuracy(self._repository.find(name, version))

    def reports(self) -> list[AccuracyReport]:
        """Return the accuracy of every model version that is sampled, without the ones that are not ready."""
        sampled = [model for model in self._repository if model.state is State.READY and model.shadow]
        return [report_accuracy(model) for model in sampled]
