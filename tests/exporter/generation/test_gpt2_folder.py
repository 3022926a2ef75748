"""A GPT-2 folder becomes a bundle that generates what transformers generates."""

from __future__ import annotations

import numpy as np
import openai
import pytest

import demi
from demi.bundles.bundle import open_bundle
from demi.errors import SourceError
from demi.tensors import DType
from tests.generating_folders import PROMPTS, continued, gpt2
from tests.server.processes import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a tiny model."""
    return gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def bundle(folder):
    """Return its bundle, measured on prompts."""
    result = demi.export(
        folder, folder / "out" / "gpt2", task="text-generation", samples=str(folder / "prompts.txt"), report=False
    )
    return open_bundle(result.path)


def test_fp32_generates_what_transformers_generates(folder, bundle):
    """Token for token, for every prompt."""
    with demi.load(bundle.path, precision="fp32") as model:
        found = model.generate(text=PROMPTS, max_tokens=24)

    expected = [continued(folder, prompt, 24) for prompt in PROMPTS]
    assert expected == found
    assert len(set(" ".join(expected).split())) > 8  # not one token repeated


def test_the_cache_is_half(bundle):
    """Inputs and outputs that hold it; ids and logits stay as they are."""
    types = {spec.name: spec.dtype for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs)}

    assert (DType.INT64, DType.FP32) == (types.pop("input_ids"), types.pop("logits"))
    assert {DType.FP16} == set(types.values())
    assert 8 == len(types)


def test_samples_are_steps_of_real_generation(bundle):
    """The first has the text and an empty cache; later ones have one token, and the keys of those before."""
    first, second = bundle.golden().inputs[:2]

    assert ((1, 4), (1, 4, 0, 8)) == (first["input_ids"].shape, first["past_key_values.0.key"].shape)
    assert ((1, 1), (1, 4, 4, 8)) == (second["input_ids"].shape, second["past_key_values.0.key"].shape)
    assert bundle.golden().outputs[0]["logits"].argmax() == second["input_ids"][0, 0]
    keys = bundle.golden().outputs[0]["present.0.key"]
    assert np.allclose(keys, second["past_key_values.0.key"], atol=1e-5)  # PyTorch's, and ONNX Runtime's


def test_half_generates_nearly_the_same(folder, bundle):
    """An error of half may turn a close decision, after which the texts differ; here none does."""
    with demi.load(bundle.path, precision="half", runtime="onnxruntime") as model:
        assert [continued(folder, PROMPTS[0], 12)] == model.generate(text=PROMPTS[0], max_tokens=12)


def test_a_server_generates_what_transformers_generates(folder, bundle):
    """In FP32 on a CPU, where the cache is FP32 as well: nothing is rounded from step to step."""
    with serving(bundle.path.parent, "--precision", "auto", "--no-grpc", "--no-trial") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        found = client.completions.create(model="gpt2", prompt=PROMPTS, max_tokens=24)

    assert [continued(folder, prompt, 24) for prompt in PROMPTS] == [each.text for each in found.choices]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    """Texts could not become tokens."""
    folder = gpt2(tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()

    with pytest.raises(SourceError, match="no tokenizer"):
        demi.export(folder, folder / "out" / "gpt2", task="text-generation", report=False)
