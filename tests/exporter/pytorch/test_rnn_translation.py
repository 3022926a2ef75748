"""torch.nn.RNN is one RNN node of ONNX, with free lengths, and answers as PyTorch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from demi.exporter.pytorch.example import Example
from demi.exporter.pytorch.export import export_program
from demi.exporter.sources.options import SourceOptions
from tests.models import run

FREE = torch.export.Dim.DYNAMIC


class Layer(torch.nn.Module):
    """An RNN with both of its outputs."""

    def __init__(self, **settings):
        super().__init__()
        self.layer = torch.nn.RNN(3, 4, **settings)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nonlinearity": "relu", "bias": False},
        {"batch_first": True, "bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"},
        {"num_layers": 2, "batch_first": True, "bias": False},
    ],
    ids=["plain", "relu without biases", "both directions", "two layers of both", "two layers, rows first"],
)
def test_an_rnn_takes_other_lengths_than_the_example_and_answers_as_pytorch(settings, tmp_path):
    module = Layer(**settings).eval()
    example = Example((), {"x": torch.randn(6, 5, 3)}, {"x": {0: FREE, 1: FREE}}, {})

    model = export_program(module, example, SourceOptions(), tmp_path / "model.pt").model

    assert settings.get("num_layers", 1) == [node.op_type for node in model.graph].count("RNN")
    other = torch.randn(7, 9, 3)
    got = run(model, {model.graph.inputs[0].name: other.numpy()}).values()
    for answered, expected in zip(got, module(other), strict=True):
        np.testing.assert_allclose(answered, expected.detach().numpy(), atol=1e-6)
