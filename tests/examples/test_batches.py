"""Random numbers of training batches: a resumed run gets those that it would have had."""

from __future__ import annotations

from itertools import islice

from demi.training.task import Position
from examples.batches import draws


def numbers(position: Position, count: int) -> list[int]:
    """Return a number of each of the first batches."""
    return [int(draw.integers(1 << 30)) for draw in islice(draws(position), count)]


def test_batches_follow_from_their_number():
    """From the third batch on they are those of a run from the start."""
    assert numbers(Position(7, 0), 5)[2:] == numbers(Position(7, 2), 3)


def test_seeds_and_ranks_differ():
    """Each rank of a run on several devices has batches of its own."""
    found = [numbers(position, 1)[0] for position in (Position(7, 0), Position(8, 0), Position(7, 0, 1, 2))]

    assert 3 == len(set(found))
