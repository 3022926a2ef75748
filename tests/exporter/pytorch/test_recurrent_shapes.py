"""Recurrent layers: their shapes are found without computing every step, and what is exported stays the layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._decomp import decomposition_table, decompositions
from torch._subclasses.fake_tensor import FakeTensorMode

from demi.errors import SourceError
from demi.exporter.pytorch.example import Example
from demi.exporter.pytorch.export import export_program
from demi.exporter.pytorch.recurrent_shapes import without_unrolling
from demi.exporter.sources.options import SourceOptions
from tests.models import run

LAYERS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


class Steps(torch.nn.Module):
    """A recurrent layer, whose sequence is returned."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.layer = LAYERS[kind](3, 4, **settings)

    def forward(self, x):
        return self.layer(x)[0]


def exported(module, x, tmp_path):
    """The ONNX model of a module that takes `x`."""
    example = Example((), {"x": x}, None, {})
    return export_program(module.eval(), example, SourceOptions(), tmp_path / "model.pt").model


def answer(model, x):
    """Its first output for `x`."""
    return next(iter(run(model, {model.graph.inputs[0].name: x.numpy()}).values()))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_shapes_and_strides_are_those_of_the_computed_steps(kind, batch_first, bidirectional):
    layer = LAYERS[kind](3, 4, 2, batch_first=batch_first, bidirectional=bidirectional).eval()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        fake = mode.from_tensor(torch.zeros(5, 7, 3))
        computed = torch.utils._pytree.tree_leaves(layer(fake))
        with without_unrolling():
            found = torch.utils._pytree.tree_leaves(layer(fake))

    assert [(each.shape, each.stride(), each.dtype) for each in found] == [
        (each.shape, each.stride(), each.dtype) for each in computed
    ]


@pytest.mark.parametrize(("kind", "step"), [("lstm", "lstm_cell"), ("gru", "gru_cell")])
def test_an_exported_layer_is_one_node_and_no_step_of_it_is_computed(kind, step, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(decompositions, step, lambda *_: steps.append(1))
    module, x = Steps(kind), torch.randn(9, 2, 3)

    model = exported(module, x, tmp_path)

    assert [node.op_type for node in model.graph].count(kind.upper()) == 1
    assert not steps
    np.testing.assert_allclose(answer(model, x), module(x).detach().numpy(), atol=1e-6)


def test_a_layer_with_projected_states_is_refused(tmp_path):
    """PyTorch translates it into an LSTM that no runtime opens."""
    with pytest.raises(SourceError, match="an LSTM with proj_size") as refused:
        exported(Steps("lstm", proj_size=2), torch.randn(5, 2, 3), tmp_path)

    assert "torch.nn.LSTMCell" in refused.value.hint


def test_pytorch_has_its_own_rules_again_afterwards():
    before = dict(torch.ops.aten.lstm.input.py_kernels), decomposition_table[torch.ops.aten.gru.input]

    with pytest.raises(KeyError), without_unrolling():
        raise KeyError

    assert before == (
        dict(torch.ops.aten.lstm.input.py_kernels),
        decomposition_table[torch.ops.aten.gru.input],
    )
