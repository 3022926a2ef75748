"""The board: the cards of all models, and which of them changed since a page last looked."""

from __future__ import annotations

from dataclasses import dataclass

from demi.server.http.console.cards import Card, Cards, Traffic, state_of
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.telemetry.recorder import Recorder

_EVERYTHING = Traffic()

Key = tuple[str, str]
"""Name and version of a model."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A card, the revision at which it last changed, its model, and the reading that it was made of."""

    revision: int
    card: Card
    model: Model
    read_at: float | None


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of the board: new and changed cards, and the models that are gone."""

    revision: int
    cards: list[Card]
    gone: list[Key]


class Board:
    """Cards of all models with the revision at which each last changed. Used on the event loop's thread only.

    All pages share it: a card is made once per reading, however many people watch.
    """

    def __init__(self, repository: Repository, recorder: Recorder) -> None:
        self._repository = repository
        self._recorder = recorder
        self._cards = Cards()
        self._shown: dict[Key, Shown] = {}
        self._gone: dict[Key, int] = {}
        self._revision = 0

    def update(self, *, anew: bool = False) -> None:
        """Make the cards of all models that were read since, or whose state or traffic has changed; with `anew`, all."""
        self._revision += 1
        present = set()
        for model in self._repository:
            key = model.name, model.version
            present.add(key)
            self._gone.pop(key, None)
            shown = self._shown.get(key)
            traffic, read_at = self._traffic(model), self._recorder.read_at(model)
            if not anew and shown is not None and _is_current(shown, model, traffic, read_at):
                continue
            card = self._cards.card(model, self._recorder.activity(model), traffic)
            is_same = shown is not None and shown.card == card and shown.model is model
            revision = shown.revision if shown is not None and is_same else self._revision
            self._shown[key] = Shown(revision, card, model, read_at)
        for key in self._shown.keys() - present:
            del self._shown[key]
            self._gone[key] = self._revision

    def since(self, revision: int) -> Changes:
        """Return what changed after a revision; everything after revision 0."""
        cards = [shown.card for shown in self._shown.values() if shown.revision > revision]
        gone = [key for key, changed in self._gone.items() if changed > revision]
        return Changes(self._revision, cards, gone if revision else [])

    def _traffic(self, model: Model) -> Traffic:
        if not self._repository.has_choice(model.name):
            return _EVERYTHING
        version = model.version
        names = self._repository.traffic(model.name).names_of(int(version)) if version.isdecimal() else []
        return Traffic(self._repository.share(model), tuple(names))


def _is_current(shown: Shown, model: Model, traffic: Traffic, read_at: float | None) -> bool:
    """Return whether a card still shows its model; cheap, since most of a thousand models have no new reading."""
    if shown.model is not model or shown.read_at != read_at or shown.card.traffic != traffic:
        return False
    return state_of(model) == shown.card.state == "ready"
