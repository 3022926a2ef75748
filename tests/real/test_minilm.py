"""all-MiniLM-L6-v2, 22 million trained parameters: half the size, and the same sentence vectors, served."""

from __future__ import annotations

import json
import signal
from urllib.parse import urlsplit

import numpy as np
import pytest

from demi.accuracy.compare import relative_l2
from demi.bundles.bundle import open_bundle
from demi.bundles.manifest import MODEL, REFERENCE
from demi.cli.main import main
from demi.runtime.onnxruntime.session import open_session
from examples.client import ask
from examples.minilm import SENTENCES, embed, tokenize
from tests.server.processes import serving

pytestmark = pytest.mark.slow

UNSEEN = (
    "The ferry to the island does not run in winter.",
    "Ships stay in the harbour from December to March.",
    "I would like to return these shoes, they are too small.",
)
"""Sentences that are not among the samples."""


@pytest.fixture(scope="module")
def bundle(tour):
    """Return the bundle of README.md's commands."""
    return open_bundle(tour.made("models/minilm"))


def test_the_model_is_half_the_size(bundle):
    """model.onnx is at most 0.52 of reference.onnx."""
    half, fp32 = ((bundle.path / name).stat().st_size for name in (MODEL, REFERENCE))

    assert half <= 0.52 * fp32


def test_the_check_passes_with_a_margin(bundle, capsys):
    """`demi check --json` passes at less than half of the default budget."""
    code = main(["check", str(bundle.path), "--json"])
    (found,) = json.loads(capsys.readouterr().out)

    assert 0 == code
    assert found["passed"]
    assert ["embedding"] == [output["output"] for output in found["outputs"]]
    assert found["outputs"][0]["relative_l2"] < 5e-3
    assert len(SENTENCES) / 8 == found["samples"]


def test_a_budget_that_is_too_tight_fails_the_check(bundle, capsys):
    """Half precision cannot be within 1e-5: exit code 1, and the message names the output and both numbers."""
    assert 1 == main(["check", str(bundle.path), "--budget", "relative_l2=1e-5"])
    assert "`embedding`: relative_l2 is 0.00" in capsys.readouterr().err


def test_the_reference_is_pytorch(bundle):
    """The FP32 model in the bundle equals PyTorch, also on shapes that it was not exported with."""
    expected = embed(UNSEEN)
    got = open_session(bundle.reference_path).run(tokenize(UNSEEN))["embedding"]

    assert relative_l2(expected, got) < 1e-5


@pytest.fixture(scope="module")
def server(bundle):
    """`demi serve` with the sentence model."""
    with serving(bundle.path) as process:
        yield process
        assert 0 == process.stop(signal.SIGTERM)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_served_vectors_are_pytorchs(server, binary):
    """A tritonclient gets PyTorch's vectors within 5e-3 relative L2, as bytes and as JSON, for unseen sentences."""
    expected = embed(UNSEEN)
    got = ask(urlsplit(server.url).netloc, "minilm", UNSEEN, binary=binary)

    assert (3, 384) == got.shape
    assert np.float32 == got.dtype
    assert relative_l2(expected, got) < 5e-3
    assert got[0] @ got[1] > got[0] @ got[2], "the two sentences about winter at sea are the more alike"


def test_one_word_and_a_full_window(server):
    """The shortest input and the longest (512 tokens) are answered as well."""
    longest = " ".join(["half precision"] * 600)
    assert 512 == tokenize([longest])["input_ids"].shape[1]
    address = urlsplit(server.url).netloc

    for sentence in ("x", longest):
        assert relative_l2(embed([sentence]), ask(address, "minilm", [sentence])) < 5e-3
