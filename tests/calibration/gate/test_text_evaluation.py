"""A check of a bundle that generates: FP32 and half write the texts of the export and those for the user's data."""

from __future__ import annotations

import numpy as np
import pytest

from demi.accuracy.budget import parse_budget
from demi.bundles import manifest as manifests
from demi.bundles.bundle import open_bundle
from demi.calibration.gate.check import CheckOptions, check_bundle
from demi.calibration.gate.data import read_data
from demi.errors import BundleError, InputError, SampleError
from demi.generation.generator import Prompt, open_generator
from demi.generation.recorded import RecordedText, read_texts
from tests.calibration.bundles import reseal
from tests.generating_bundles import BREAKS, COUNT, SLIPS, write_checked_decoder


def findings(check, gate="tokens differ"):
    """Return the errors and warnings of one gate."""
    result = next(each for each in check.gate_results if each.gate == gate)
    return [*result.errors, *result.warnings]


def test_the_same_model_writes_the_same(tmp_path):
    """Every token of the text, its end included."""
    check = check_bundle(write_checked_decoder(tmp_path / "count" / "1", at_export=1.0))

    assert check
    tokens = check.facts.golden.tokens
    assert (1, 7, 1.0, None) == (tokens.texts, tokens.tokens, tokens.same, tokens.first_difference)


def test_spoiled_weights_fail(tmp_path):
    """The share has dropped since the export; the first step with another token is named."""
    check = check_bundle(write_checked_decoder(tmp_path / "count" / "1", SLIPS, at_export=1.0))

    assert not check
    assert [
        "half chooses 71.43% of 7 tokens as FP32 does: the first difference is at step 6, and at the export it was 100.00%"
    ] == findings(check)


@pytest.mark.parametrize(("half", "at_export"), [(SLIPS, 5 / 7), (SLIPS, 6 / 7), (SLIPS, None)], ids=str)
def test_what_the_export_measured_passes(tmp_path, half, at_export):
    """One token less as well: machines sum in different orders."""
    assert [] == findings(check_bundle(write_checked_decoder(tmp_path / "count" / "1", half, at_export=at_export)))


@pytest.mark.parametrize(("limit", "passes"), [("tokens=0.7", True), ("tokens=0.72", False)])
def test_a_budget_for_tokens_replaces_the_exports_measurement(tmp_path, limit, passes):
    """Other limits stay those of the bundle."""
    check = check_bundle(write_checked_decoder(tmp_path / "count" / "1", SLIPS, at_export=1.0), parse_budget([limit]))

    assert passes is (findings(check) == [])
    assert passes or "the budget demands 72.00%" in findings(check)[0]


def test_half_without_a_choice_fails(tmp_path):
    """Logits that are NaN along the text, whatever the budget."""
    check = check_bundle(write_checked_decoder(tmp_path / "count" / "1", BREAKS), parse_budget(["tokens=0"]))

    assert ["NaN or infinite at 5 of them" in line for line in findings(check)] == [True]


def test_without_a_reference_the_recorded_tokens_are_what_fp32_chose(tmp_path):
    """Their errors are unknown, their tokens are not."""
    check = check_bundle(write_checked_decoder(tmp_path / "count" / "1", SLIPS, at_export=1.0, reference=None))

    assert 5 / 7 == check.facts.golden.tokens.same
    assert np.isnan(check.facts.golden.tokens.by_step[0].relative_l2)


def test_texts_of_the_user(tmp_path):
    """FP32 continues each, and half follows; a limit holds for them, the export's share only for its own texts."""
    bundle = write_checked_decoder(tmp_path / "count" / "1", SLIPS, at_export=5 / 7)
    (tmp_path / "prompts.txt").write_text("one two three four\none\n")
    options = CheckOptions(data=read_data(str(tmp_path / "prompts.txt")))
    check = check_bundle(bundle, options=options)

    assert check
    assert (2, 5 + 8) == (check.facts.data.samples, check.facts.data.tokens.tokens)
    assert not check_bundle(bundle, parse_budget(["tokens=0.99"]), options)


def test_a_baseline_holds_the_share_of_tokens(tmp_path):
    """With a row for each text."""
    check = check_bundle(write_checked_decoder(tmp_path / "count" / "1"))
    measure = next(each for each in check.measures if each.name == "tokens")

    assert (1.0, [[7, 7]], True) == (measure.value, measure.rows.tolist(), measure.higher_is_better)


def test_a_bundle_without_texts_is_a_warning(tmp_path):
    """An older one: nothing was generated, which is not a failure."""
    check = check_bundle(write_checked_decoder(tmp_path / "count" / "1", texts=()))

    assert check
    assert "give texts or sounds with --data" in findings(check)[0]


def test_a_text_that_cannot_be_read_is_named(tmp_path):
    """The data's own error, not the model's."""
    (tmp_path / "prompts.csv").write_text("words\none\n")
    options = CheckOptions(data=read_data(str(tmp_path / "prompts.csv")))

    with pytest.raises(SampleError, match="row 0 has no `text`"):
        check_bundle(write_checked_decoder(tmp_path / "count" / "1"), options=options)


def test_texts_have_no_task_metric(tmp_path):
    """Their tokens are compared."""
    (tmp_path / "prompts.txt").write_text("one two\n")
    options = CheckOptions(data=read_data(str(tmp_path / "prompts.txt")), metric="top1")

    with pytest.raises(InputError, match="no task metric"):
        check_bundle(write_checked_decoder(tmp_path / "count" / "1"), options=options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RecordedText(Prompt((1,)), (9,)), "not in the vocabulary"),
        (RecordedText(Prompt((1,)), (-1,)), "not in the vocabulary"),
        (RecordedText(Prompt(()), (1,)), "cannot generate"),
        (RecordedText(Prompt((1,)), (2,) * 100_000), "cannot generate"),
        (RecordedText(Prompt((1,), {"input_ids": np.zeros((1, 1))}), (2,)), "has no encoder"),
    ],
    ids=["beyond", "negative", "empty", "long", "encoder"],
)
def test_recorded_texts_are_untrusted(tmp_path, text, expected):
    """A bundle may come from anywhere."""
    with pytest.raises(BundleError, match=expected):
        check_bundle(write_checked_decoder(tmp_path / "count" / "1", texts=[text]))


def test_damaged_texts_are_a_bundle_error(tmp_path):
    """With the file's name."""
    bundle = write_checked_decoder(tmp_path / "count" / "1")
    (bundle / manifests.TEXTS).write_bytes(b"garbage")
    reseal(bundle)

    with pytest.raises(BundleError, match=r"`texts\.npz` cannot be read"):
        check_bundle(bundle)


def test_texts_are_read_as_they_were_written(tmp_path):
    """Prompts and tokens."""
    texts = [RecordedText(Prompt((1, 2), count=2), (3, 0)), RecordedText(Prompt((5,), count=1), (6,))]
    bundle = open_bundle(write_checked_decoder(tmp_path / "count" / "1", COUNT, texts=texts))

    assert texts == read_texts(bundle, open_generator(bundle))
