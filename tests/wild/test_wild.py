"""Wild models, exported in both half formats: within budget on held-out inputs, with the same answers, and served.

The gate takes the quick ones; `make wild` takes all.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from demi.accuracy.budget import Budget
from demi.accuracy.compare import compare
from demi.bundles.bundle import open_bundle
from demi.runtime.onnxruntime.session import open_session
from tests.wild.asking import asked
from tests.wild.conftest import Workshop, require
from tests.wild.exporting import PRECISIONS, fitted
from tests.wild.models import WILD

pytestmark = pytest.mark.slow

every = pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(model.name, half, marks=() if model.quick else pytest.mark.wild, id=f"{model.name}-{half}")
        for model in WILD
        for half in PRECISIONS
    ],
)


@every
def test_exported(workshop: Workshop, name: str, precision: str):
    """`demi export` writes a bundle."""
    assert "" == workshop.exported(name, precision).failure


@every
def test_within_budget_on_held_out_inputs(workshop: Workshop, name: str, precision: str):
    """Every output is within the default budget on the held-out inputs, under the emulator."""
    assert () == workshop.judged(name, precision).over


@every
def test_same_answer(workshop: Workshop, name: str, precision: str):
    """The half model's answer equals FP32's: texts, classes, boxes, cuts."""
    assert "" == workshop.judged(name, precision).answer


@every
def test_served(workshop: Workshop, servers, name: str, precision: str):
    """A client of `demi serve` gets outputs within the budget and the same answer, with all models of a precision in one server."""
    exported = workshop.exported(name, precision)
    assert not exported.failure, exported.failure
    task = require(name).task
    reference = open_session(open_bundle(exported.bundle).reference_path)

    def single(feeds):
        return reference.run(fitted(reference, feeds))

    with asked(urlsplit(servers[precision].url).netloc, f"{name}-{precision}") as run:
        sets = task.heldout(single)
        found = compare([single(feeds) for feeds in sets], [run(feeds) for feeds in sets], Budget())

        assert [] == list(found.failures())
        assert "" == task.differs(task.answer(single), task.answer(run))
