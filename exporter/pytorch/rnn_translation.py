"""Translate torch.nn.RNN into ONNX's RNN operator, which PyTorch's exporter would unroll into its steps.

Unrolled, a layer of 160 steps becomes 1,900 nodes and takes no other length. LSTM and GRU are translated by PyTorch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.onnx_types import FLOAT

op: Any = opset18
"""Its own annotations know no Python constants, which become tensors."""


def rnn_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translations of `aten.rnn_*.input`, for `torch.onnx.export(custom_translation_table=...)`."""
    aten = torch.ops.aten
    return {aten.rnn_tanh.input: _translation("Tanh"), aten.rnn_relu.input: _translation("Relu")}


def _translation(activation: str) -> Callable[..., Any]:
    """Return the translation of the operator with this activation; its annotations tell PyTorch which are tensors."""

    def rnn(
        x: FLOAT,
        hidden: FLOAT,
        params: Sequence[FLOAT],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[FLOAT, FLOAT]:
        return _layers(activation, x, hidden, params, has_biases, num_layers, bidirectional, batch_first)

    return rnn


def _layers(
    activation: str,
    x: Any,
    hidden: Any,
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, Any]:
    """Return y and the last hidden states of all layers; dropout between layers is for training alone.

    PyTorch's `params` are W [hidden, inputs], R [hidden, hidden] and, if there are biases, both biases [hidden], of each
    direction of each layer. `hidden` is [layers * directions, batch, hidden].
    """
    directions, of_cell = (2 if bidirectional else 1), (4 if has_biases else 2)
    of_layer = directions * of_cell
    y = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    last = []
    for layer in range(num_layers):
        cells = [params[layer * of_layer + direction * of_cell :][:of_cell] for direction in range(directions)]
        start, end = layer * directions, (layer + 1) * directions
        initial = op.Slice(hidden, [start], [end], [0])
        y, state = _layer(activation, y, initial, cells)
        last.append(state)
    states = op.Concat(*last, axis=0) if len(last) > 1 else last[0]
    return op.Transpose(y, perm=[1, 0, 2]) if batch_first else y, states


def _layer(activation: str, x: Any, initial: Any, cells: Sequence[Sequence[Any]]) -> tuple[Any, Any]:
    """Return y [time, batch, directions * hidden] and the last states [directions, batch, hidden] of one layer."""
    w, r = (_stacked([cell[place] for cell in cells]) for place in (0, 1))
    biases = _stacked([op.Concat(*cell[2:], axis=0) for cell in cells]) if len(cells[0]) > 2 else None
    y, state = op.RNN(
        x,
        w,
        r,
        biases,
        None,
        initial,
        activations=[activation] * len(cells),
        direction="bidirectional" if len(cells) > 1 else "forward",
        hidden_size=cells[0][1].shape[0],
    )
    by_row = op.Transpose(y, perm=[0, 2, 1, 3])  # from [time, directions, batch, hidden]
    return op.Reshape(by_row, [0, 0, -1]), state


def _stacked(tensors: Sequence[Any]) -> Any:
    """Return the tensors of both directions along a new first axis."""
    rows = [op.Unsqueeze(each, [0]) for each in tensors]
    return op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]
