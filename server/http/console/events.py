"""Server-sent events of the console: changed cards after each reading, and the points of the model that a page shows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from demi.server.errors import UnavailableError
from demi.server.http.console.board import Board
from demi.server.models.repository import Repository
from demi.server.telemetry.history import COLUMNS, MAX_OUTPUTS
from demi.server.telemetry.recorder import Recorder, Span

MAX_WATCHERS = 32
"""Pages that may watch at the same time; each holds a connection open."""


@dataclass(frozen=True, slots=True)
class Points:
    """New points of one model's history; the columns are those of `COLUMNS`, then one for each output's error."""

    span: Span
    times: list[float]
    """Milliseconds since 1970-01-01 UTC."""
    columns: dict[str, list[float]]
    errors: dict[str, list[float]]


class Events:
    """Streams of events. Owns the board, and moves it after each reading; used on the event loop's thread only."""

    def __init__(self, repository: Repository, recorder: Recorder) -> None:
        self._repository = repository
        self._recorder = recorder
        self._board = Board(repository, recorder)

    def check_room(self) -> None:
        """Raise UnavailableError if too many pages watch already."""
        if self._recorder.watchers >= MAX_WATCHERS:
            raise UnavailableError(f"{MAX_WATCHERS} pages watch this server already: close one of them")

    async def stream(self, name: str = "", version: str = "") -> AsyncIterator[bytes]:
        """Yield events until the client leaves or the server stops: `models`, and `points` of the named model version."""
        with self._recorder.watching(name, version):
            revision = 0
            seen: dict[Span, float] = {"minutes": 0.0, "hours": 0.0}
            while not self._repository.draining:
                self._board.update()
                changes = self._board.since(revision)
                revision = changes.revision
                yield encode_event("models", changes)
                for points in self.points(name, version, seen):
                    yield encode_event("points", points)
                await self._recorder.next_reading()
            yield encode_event("stopping", {})

    def snapshot(self) -> bytes:
        """Return all cards as JSON, made anew: nobody may be watching, so that there are no readings."""
        self._board.update(anew=True)
        return msgspec.json.encode(self._board.since(0))

    def points(self, name: str, version: str, seen: dict[Span, float]) -> list[Points]:
        """Return the points of a model version after the times in `seen`, which move on; nothing for an unknown model."""
        model = self._repository.get(name, version)
        if model is None:
            return []
        outputs = [] if model.reason else [spec.name for spec in model.signature.outputs[:MAX_OUTPUTS]]
        found = []
        for span in seen:
            times, rows = self._recorder.points(model, span, seen[span])
            if times:
                seen[span] = times[-1]
                errors = rows[len(COLUMNS) :]
                found.append(
                    Points(
                        span, times, dict(zip(COLUMNS, rows, strict=False)), dict(zip(outputs, errors, strict=False))
                    )
                )
        return found


def encode_event(name: str, data: object) -> bytes:
    """Return one event as bytes; JSON has no line breaks, so that its data is one line, and writes NaN as null."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))
