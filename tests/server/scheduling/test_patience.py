"""A free instance waits for further requests only while several clients ask."""

from __future__ import annotations

from demi.server.scheduling.patience import REMEMBERED, TURNS, Patience


def test_a_lone_client_never_waits():
    """Runs of one request each cause no waiting."""
    patience = Patience()
    patience.ran(1)

    assert 0 == patience.turns


def test_a_shared_run_is_remembered_for_a_while():
    """After a shared run the next runs wait, until too many of them had one request."""
    patience = Patience()
    patience.ran(3)

    waited = []
    for _ in range(REMEMBERED + 2):
        waited.append(patience.turns)
        patience.ran(1)

    assert [TURNS] * REMEMBERED + [0, 0] == waited
