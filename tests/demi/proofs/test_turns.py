"""Sessions timed turn by turn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from demi.proofs.turns import median_ms, with_batch
from demi.tensors import parse_spec
from tests.server.fakes import open_fake


def test_turn_by_turn():
    """Each session runs once untimed and then at least three times, on the same inputs."""
    first, second = open_fake(), open_fake()
    ticks = itertools.count()

    found = median_ms([first, second], {"x": np.ones((1, 3), np.float32)}, 0.0, lambda: next(ticks) / 1000)

    assert [1.0, 1.0] == pytest.approx(found)
    assert (4, 4) == (len(first.runs), len(second.runs))


def test_rows():
    """Rows are repeated or cut."""
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    spec = parse_spec("x:fp32[batch,3]")

    assert [(3, 3), (1, 3)] == [with_batch(feeds, [spec], rows)["x"].shape for rows in (3, 1)]
