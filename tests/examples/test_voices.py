"""Synthesized speech of the examples: the same on every run."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from examples.domains.voices import Utterance, say

spec = find_spec("espeakng_loader")


@pytest.mark.skipif(spec is None, reason="espeakng-loader is not installed: pip install --no-deps espeakng-loader")
def test_a_voice_with_breath_says_the_same_at_any_time():
    """Its noise is seeded, which the library itself does anew every second."""
    package, utterances = Path(spec.origin).parent, [Utterance("yes", "en-us+f2")]

    (first,) = say(package, utterances)
    time.sleep(1.1)  # to the next second of the clock
    (second,) = say(package, utterances)

    np.testing.assert_array_equal(first, second)
