"""The versions of a model side by side: traffic, latency and accuracy of each, and the rules that choose among them."""

from __future__ import annotations

import msgspec

from demi.server.errors import NotFoundError
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.models.traffic import Since
from demi.server.protocol.schemas import CanaryEntry, VersionAccuracy, VersionEntry, VersionsAnswer
from demi.server.scheduling.statistics import Totals


def describe_versions(
    repository: Repository, name: str, since: Since | None = None, saved: bool | None = None
) -> VersionsAnswer:
    """Return the versions of a model, oldest first. Raise NotFoundError for an unknown model.

    `since` is the last change of the rules: requests before it do not count. `saved` is passed on.
    """
    known = repository.versions(name)
    traffic = repository.traffic(name)
    answering = _answering(repository, name)
    canary = traffic.canary
    return VersionsAnswer(
        name=name,
        answering=answering,
        stable=str(traffic.stable) if traffic.stable else None,
        canary=CanaryEntry(str(canary.version), canary.percent, str(canary.header or "")) if canary else None,
        aliases={alias: str(version) for alias, version in traffic.aliases.items()},
        previous=list(map(str, traffic.previous)),
        since_ms=since.when_ms if since else None,
        versions=[_entry(repository, repository.find(name, version), since) for version in known],
        saved=saved,
    )


def _answering(repository: Repository, name: str) -> str | None:
    try:
        return repository.find(name).version
    except NotFoundError:
        if repository.versions(name):
            return None  # the stable version is gone
        raise


def _entry(repository: Repository, model: Model, since: Since | None) -> VersionEntry:
    stats = model.statistics
    before = since.totals.get(model.version, Totals()) if since else Totals()
    now = stats.totals()
    if now.success < before.success:  # the version was replaced since, and counts from zero
        before = Totals()
    requests = now.success - before.success
    p50, p99 = (stats.request_seconds.quantile(share, before.seconds) for share in (0.5, 0.99))
    return VersionEntry(
        version=model.version,
        state=model.state.value,
        reason=model.reason,
        aliases=repository.traffic(model.name).names_of(int(model.version)) if model.version.isdecimal() else [],
        percent=repository.share(model),
        precision=model.precision,
        requests=requests,
        failed=now.fail - before.fail,
        mean_ms=(now.success_ns - before.success_ns) / requests / 1e6 if requests else None,
        p50_ms=_ms(p50),
        p99_ms=_ms(p99),
        accuracy=_accuracy(model) if model.precision else None,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _accuracy(model: Model) -> VersionAccuracy:
    monitor = model.monitor
    found = monitor.window.assess()
    return VersionAccuracy(monitor.state_text, found.samples, msgspec.to_builtins(found.outputs), monitor.guard.reruns)
