"""PyTorch sources in other types than FP32, and samples in other types than the model's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from demi.errors import SourceError
from demi.exporter.open_source import open_source
from demi.exporter.pytorch.example import Example
from demi.exporter.pytorch.half_weights import half_types, held
from demi.exporter.pytorch.input_dtypes import call, float_type
from demi.exporter.sources.options import SourceOptions
from demi.tensors import parse_spec
from tests.exporter.pytorch.torch_modules import Mlp, NamesItsHalf, Network, OneHot, WithBranch, build
from tests.models import run

HALVES = {"BF16": torch.bfloat16, "FP16": torch.float16}
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
PICTURES = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def archived(path, module, example, kind):
    """A module in a file of each kind, made in the module's own type; the options to read it with."""
    if kind == ".pt2":
        program = torch.export.export(
            module, example, dynamic_shapes=tuple({0: torch.export.Dim.AUTO} for _ in example)
        )
        torch.export.save(program, path / "m.pt2")
        return path / "m.pt2", {}
    if kind == "TorchScript":
        torch.jit.save(torch.jit.trace(module, example), path / "m.pt")
        return path / "m.pt", {}
    if kind == "state_dict":
        torch.save(module.state_dict(), path / "m.pt")
        return path / "m.pt", {"factory": f"{type(module).__module__}:{type(module).__name__}"}
    torch.save(module, path / "m.pt")
    return path / "m.pt", {"trust_pickle": True}


@pytest.mark.parametrize(
    ("half", "kind"), [("BF16", ".pt2"), ("BF16", "TorchScript"), ("BF16", "pickle"), ("FP16", ".pt2")]
)
class TestHalfWeights:
    """Sources whose weights are half."""

    def test_the_exact_weights_answer(self, tmp_path, half, kind):
        """The model is FP32 at its border and inside, and answers what its weights say in FP32."""
        module = Network().to(HALVES[half]).eval()
        path, more = archived(tmp_path, module, (torch.from_numpy(PICTURES).to(HALVES[half]),), kind)
        source = open_source(path, SourceOptions(**({"samples": ({"x": PICTURES},)} if kind != ".pt2" else {}), **more))
        x = torch.from_numpy(PICTURES).to(HALVES[half]).float()

        assert (half,) == source.half_types
        assert f"the weights are {half} in the source" in source.notes[0]
        assert ir.DataType.FLOAT is source.model.graph.inputs[0].dtype
        with torch.no_grad():
            exact = module.float()(x).numpy()
        np.testing.assert_allclose(exact, run(source.model, {"x": x.numpy()})["output"], rtol=1e-4, atol=1e-5)

    def test_bodies(self, tmp_path, half, kind):
        """The branches of `torch.cond` are widened, too."""
        if kind == "TorchScript":
            pytest.skip("TorchScript traces no torch.cond")
        module = WithBranch().to(HALVES[half]).eval()
        path, more = archived(tmp_path, module, (torch.from_numpy(X).to(HALVES[half]),), kind)
        source = open_source(path, SourceOptions(**({"samples": ({"x": X},)} if kind != ".pt2" else {}), **more))

        assert (half,) == source.half_types
        assert source.export_error <= 1e-4

    def test_code_that_names_its_type(self, tmp_path, half, kind):
        """A module that casts to half itself runs on no other weights: its ONNX model is widened instead."""
        module = NamesItsHalf(HALVES[half]).eval()
        path, more = archived(tmp_path, module, (torch.from_numpy(X),), kind)
        source = open_source(path, SourceOptions(**({"samples": ({"x": X},)} if kind != ".pt2" else {}), **more))
        weights = module.weight.detach().float().numpy()

        assert (half,) == source.half_types
        np.testing.assert_allclose(X @ weights, run(source.model, {"x": X})["output"], rtol=1e-2, atol=1e-2)


def test_transformers_folder(tmp_path):
    """Checkpoints are published in bfloat16: such a folder becomes FP32."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = transformers.BertConfig(**sizes, max_position_embeddings=16)
    transformers.BertForSequenceClassification(config).to(torch.bfloat16).save_pretrained(tmp_path / "hf")

    source = open_source(tmp_path / "hf", SourceOptions(task="text-classification"))

    assert ("BF16",) == source.half_types
    assert source.export_error <= 1e-4


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (".pt2", np.float64),
        ("TorchScript", np.float64),
        ("state_dict", np.float64),
        ("pickle", np.float64),
        ("pickle", np.float16),
    ],
)
def test_floats_of_another_width(tmp_path, kind, dtype):
    """`np.random.rand` makes float64: it is cast to the module's type, for every kind of file."""
    path, more = archived(tmp_path, build(), (torch.from_numpy(X),), kind)
    samples = {"samples": ({"x": X.astype(dtype)},)}
    more = more | {"factory": "tests.exporter.pytorch.torch_modules:build"} if kind == "state_dict" else more

    source = open_source(path, SourceOptions(**samples, **more))

    assert ir.DataType.FLOAT is source.model.graph.inputs[0].dtype


def test_double_stays_double(tmp_path):
    """A module in FP64 takes FP64, whatever the samples are."""
    torch.save(Mlp().double(), tmp_path / "m.pt")
    source = open_source(tmp_path / "m.pt", SourceOptions(samples=({"x": X},), trust_pickle=True))

    assert ir.DataType.DOUBLE is source.model.graph.inputs[0].dtype


def test_stated_types_win(tmp_path):
    """Types given with `--input` are kept: the module casts by itself."""
    module = torch.nn.Identity()
    torch.save(module, tmp_path / "m.pt")
    specs = (parse_spec("input:float64[batch,4]"),)
    source = open_source(tmp_path / "m.pt", SourceOptions(samples=({"input": X},), inputs=specs, trust_pickle=True))

    assert ir.DataType.DOUBLE is source.model.graph.inputs[0].dtype


def test_small_integers_where_only_int64_will_do(tmp_path):
    """A one-hot takes int64 alone: int32 ids, which lose nothing, are widened; ids that work are left."""
    torch.save(OneHot(), tmp_path / "m.pt")
    ids = np.array([0, 3, 1], np.int32)
    source = open_source(tmp_path / "m.pt", SourceOptions(samples=({"x": X, "ids": ids},), trust_pickle=True))

    assert [ir.DataType.FLOAT, ir.DataType.INT64] == [value.dtype for value in source.model.graph.inputs]


def test_a_call_that_fails_is_no_defect(tmp_path):
    """PyTorch's own words, what the inputs are, and what to do."""
    torch.save(Mlp(), tmp_path / "m.pt")
    with pytest.raises(SourceError, match="does not run on the example inputs") as caught:
        open_source(tmp_path / "m.pt", SourceOptions(samples=({"x": X[:, :2]},), trust_pickle=True))

    assert "`x` float32 [3, 2]" in caught.value.hint


class NeedsBoth(torch.nn.Module):
    """Takes a second input that it says is optional."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def forward(self, x, other=None):
        return x + other.sum()


def test_a_call_without_an_input_that_is_not_optional():
    """The inputs that the example lacks are named; an encoder with a decoder has tasks of its own."""
    module = NeedsBoth()
    example = Example((torch.ones(1),), {}, None, {})
    with pytest.raises(SourceError) as caught:
        call(module, example, Path("m"))
    module.config = SimpleNamespace(is_encoder_decoder=True)
    with pytest.raises(SourceError) as both:
        call(module, example, Path("m"))

    assert "and the model also takes other; give others with --sample" in caught.value.hint
    assert "--task text2text-generation" in both.value.hint


def test_texts_are_no_tensors(tmp_path):
    """PyTorch has no tensors of strings, and it is said of which input."""
    torch.save(Mlp(), tmp_path / "m.pt")
    with pytest.raises(SourceError, match="input `x` holds <U1, which PyTorch tensors cannot hold"):
        open_source(tmp_path / "m.pt", SourceOptions(samples=({"x": np.array(["a"])},), trust_pickle=True))


def test_float_type():
    """The float type of the parameters, else of the buffers, else FP32."""
    assert torch.float64 is float_type(Mlp().double())
    assert torch.float32 is float_type(torch.nn.Identity())
    assert ("FP16", "BF16") == half_types(iter([torch.zeros(1).bfloat16(), torch.zeros(1).half(), torch.zeros(1)]))
    assert 6 == len(list(held(torch.nn.BatchNorm1d(2)))) + 1
