"""A trial of generation: whether half follows FP32's texts, and what the budget makes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from demi.accuracy.token_agreement import Step, token_agreement
from demi.errors import OverBudgetError
from demi.exporter.generation.samples import STEPS, Trial, sampled_steps
from demi.exporter.generation.trial import measure_tokens, require_tokens
from demi.exporter.passes.prepare import prepare
from demi.generation.checks import Tensors
from demi.generation.generator import Generator, Options, Prompt
from demi.generation.recorded import RecordedText
from demi.runtime.onnxruntime.session import open_session
from tests.generating_bundles import BREAKS, COUNT, COUNTING, words_json
from tests.models import parse
from tests.server.bundles import serialized

EARLIER = COUNT.replace("value_int = 1", "value_int = 2")
"""The same model, one word ahead: it ends a text earlier."""


def trial(*prompts: tuple[int, ...]) -> Trial:
    """Return the trial of the model that counts."""
    session = open_session(serialized(COUNT))
    generator = Generator(COUNTING, Tensors(session.inputs, session.outputs), None, words_json().decode(), "here")
    return Trial(generator, tuple(map(Prompt, prompts)), (None,) * len(prompts))


def converted(text: str):
    """Return the part of a conversion that a trial reads: a half model and its kernels."""
    model = prepare(parse(text))
    return SimpleNamespace(
        lowered=SimpleNamespace(model=model), planned=SimpleNamespace(plan=SimpleNamespace(kernels={}))
    )


def test_the_same_model_chooses_the_same_tokens():
    """To the end token, which counts."""
    tried = measure_tokens(trial((1, 2), (3,)), prepare(parse(COUNT)), converted(COUNT))
    found = tried.agreement

    assert (2, 15, 1.0, 2) == (found.texts, found.tokens, found.same, found.whole_texts)
    assert RecordedText(Prompt((1, 2)), (3, 4, 5, 6, 7, 8, 0)) == tried.texts[0]


def test_another_model_follows_fp32s_tokens():
    """It gets FP32's token after each of its own, so that every step counts."""
    found = measure_tokens(trial((1, 2)), prepare(parse(COUNT)), converted(EARLIER)).agreement

    assert (7, 0.0, 1) == (found.tokens, found.same, found.first_difference)


def test_the_budget_for_tokens():
    """Below it nothing is written; without one, everything is only reported."""
    half = token_agreement([[Step(True, 0.0), Step(False, 1.0)]])

    require_tokens(half, None)
    require_tokens(half, 0.5)
    with pytest.raises(OverBudgetError, match=r"50\.00% of 2 tokens.*step 2.*demands 99\.00%"):
        require_tokens(half, 0.99)


def test_half_without_a_choice_is_refused():
    """NaN or infinity where FP32 is finite is in no budget."""
    found = measure_tokens(trial((1, 2)), prepare(parse(COUNT)), converted(BREAKS)).agreement

    assert 5 == found.non_finite
    with pytest.raises(OverBudgetError, match="NaN or infinite at 5 of them"):
        require_tokens(found, None)


def test_samples_are_some_steps():
    """The first with an empty cache; none after the end of a text."""
    session = open_session(serialized(COUNT))
    begun = trial((1, 2))
    sequence = begun.generator.begin(Prompt((1, 2)), session.inputs, options=Options(100)).sequence

    sizes = [feeds["past"].shape[2] for feeds in sampled_steps([sequence], session.run)]
    assert [0, 2, 3, 5] == sizes
    assert (0, 1, 2, 4) == STEPS[:4]
