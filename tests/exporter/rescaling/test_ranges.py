"""Ranges of rescaled models: computed from the original's, and equal to observed ones."""

import dataclasses

import numpy as np
import pytest

from demi.calibration.observe import observe
from demi.calibration.samples import Samples
from demi.exporter.rescaling.rescale import rescale_prepared
from tests.exporter.rescaling.test_rescale import BRANCHES, TIED
from tests.models import prepared

LARGE = np.linspace(-3000, 3000, 8, dtype=np.float32).reshape(2, 4)
FEEDS = {
    TIED: {"ids": np.array([0, 2]), "z": LARGE / 1e5},
    BRANCHES: {"x": LARGE, "when": np.array(True)},
}


@pytest.mark.parametrize("text", FEEDS, ids=["tied", "branches"])
def test_ranges_of_a_rescaled_model_are_those_observed(text):
    """Every range of a rescaled model is the one that another observation finds, that of a new Mul's result as well."""
    model, samples = prepared(text), Samples((FEEDS[text],), "given")

    found = rescale_prepared(model, samples.feeds, observe(model, samples))
    seen = observe(found.model, samples)

    assert found
    assert found.profile is not None
    assert seen.ranges.keys() <= found.profile.ranges.keys()
    for name, range_ in seen.ranges.items():
        assert _known(range_) == _known(found.profile[name]), name


def _known(range_):
    """Return all of a range except that its elements are integers, which is not known of scaled ones."""
    return dataclasses.replace(range_, integer_valued=False)
