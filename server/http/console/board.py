"""The board: the cards of all models, and which of them changed since a page last looked."""

from __future__ import annotations

from dataclasses import dataclass

from demi.server.http.console.cards import Card, Cards, Traffic
from demi.server.models.model import Model, State
from demi.server.models.repository import Repository
from demi.server.telemetry.recorder import Recorder

Key = tuple[str, str]
"""Name and version of a model."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed on the board: new and changed cards, and the models that are gone."""

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
        self._shown: dict[Key, tuple[int, Card, Model]] = {}
        self._gone: dict[Key, int] = {}
        self._revision = 0

    def update(self) -> None:
        """Make the cards of all models that may have changed."""
        self._revision += 1
        present = set()
        for model in self._repository:
            key = model.name, model.version
            present.add(key)
            self._gone.pop(key, None)
            shown = self._shown.get(key)
            traffic = self._traffic(model)
            if shown is not None and shown[2] is model and not _may_change(model, shown[1], traffic):
                continue
            card = self._cards.card(model, self._recorder.activity(model), traffic)
            if shown is None or shown[1] != card or shown[2] is not model:
                self._shown[key] = self._revision, card, model
        for key in self._shown.keys() - present:
            del self._shown[key]
            self._gone[key] = self._revision

    def since(self, revision: int) -> Changes:
        """Return what changed after a revision; everything after revision 0."""
        cards = [card for changed, card, _ in self._shown.values() if changed > revision]
        gone = [key for key, changed in self._gone.items() if changed > revision]
        return Changes(self._revision, cards, gone if revision else [])

    def _traffic(self, model: Model) -> Traffic:
        version = model.version
        names = self._repository.traffic(model.name).names_of(int(version)) if version.isdecimal() else []
        return Traffic(self._repository.share(model), tuple(names))


def _may_change(model: Model, card: Card, traffic: Traffic) -> bool:
    """Return whether a model's card could differ from the one shown; cheap, since most of a thousand models are idle."""
    used = model.statistics.success.count or model.statistics.fail.count
    return bool(used) or model.state is not State.READY or card.state != "ready" or card.traffic != traffic
