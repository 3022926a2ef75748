"""The repository indexes of several servers as one: a model version is as ready as on the server where it is least so."""

from __future__ import annotations

from collections.abc import Sequence

from demi.server.models.model import State
from demi.server.protocol.schemas import IndexEntry

_LEAST_READY_FIRST = (State.FAILED, State.DRAINING, State.LOADING, State.READY)


def join_index(indexes: Sequence[Sequence[IndexEntry]]) -> list[IndexEntry]:
    """Return one row for each model version that any server lists, sorted by name and version.

    Where servers differ, or some do not list a version, the row has the least ready state, and its reason counts them.
    """
    by_model: dict[tuple[str, str], list[IndexEntry]] = {}
    for index in indexes:
        for entry in index:
            by_model.setdefault((entry.name, entry.version), []).append(entry)
    return [_join(by_model[key], len(indexes)) for key in sorted(by_model, key=_natural)]


def _join(found: Sequence[IndexEntry], servers: int) -> IndexEntry:
    worst = min(found, key=lambda entry: _rank(entry.state))
    alike = sum(entry.state == worst.state for entry in found)
    if alike == servers:
        return worst
    if worst.state == State.READY.value:
        return IndexEntry(worst.name, worst.version, State.LOADING.value, f"ready on {alike} of {servers} servers")
    reason = f"on {alike} of {servers} servers: {worst.reason}"
    return IndexEntry(worst.name, worst.version, worst.state, reason)


def _rank(state: str) -> int:
    return _LEAST_READY_FIRST.index(State(state))


def _natural(key: tuple[str, str]) -> tuple[str, int, str]:
    name, version = key
    return name, int(version) if version.isdecimal() else -1, version
