"""Find the output shapes of recurrent layers without unrolling them.

PyTorch's exporter runs a model on fake tensors several times, to learn shapes. Its rule for an LSTM, GRU or RNN computes
every step of the sequence: a GRU of two layers over 160 steps takes 45 seconds that way, and 3 with the rules here. The
layer itself is exported as before, as one node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

PROJECTION = "ONNX has no operator for an LSTM with proj_size"
ANY_BACKEND = torch._C.DispatchKey.CompositeImplicitAutograd


@contextmanager
def without_unrolling() -> Iterator[None]:
    """Replace the rules of PyTorch for shapes of recurrent layers, and restore them at the end."""
    aten = torch.ops.aten
    rules = {
        aten.lstm.input: _lstm,
        aten.gru.input: _gated,
        aten.rnn_tanh.input: _gated,
        aten.rnn_relu.input: _gated,
    }
    steps = {op: op.py_kernels[ANY_BACKEND] for op in rules}
    try:
        for op, rule in rules.items():
            _set_rule(op, _on_fake_tensors(rule, steps[op]))
        yield
    finally:
        for op, computed in steps.items():
            _set_rule(op, computed)


def _set_rule(op: Any, rule: Callable[..., Any]) -> None:
    """Set the rule in both places that the exporter reads: the operator's kernels and the table of decompositions."""
    op.py_kernels[ANY_BACKEND] = rule
    op._dispatch_cache.clear()
    decomposition_table[op] = rule


def _on_fake_tensors(rule: Callable[..., Any], steps: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that applies `rule` where only shapes are asked for, else computes `steps`.

    Where operations are recorded into a graph (a proxy mode, or tensors that are not fake), empty results would become
    part of the model.
    """

    def found(x: torch.Tensor, *args: Any) -> Any:
        is_recorded = not isinstance(x, FakeTensor) or get_proxy_mode() is not None
        return steps(x, *args) if is_recorded else rule(x, *args)

    return found


def _lstm(x: torch.Tensor, states: Any, *args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return empty outputs of `aten.lstm.input`: y [time, batch, directions * hidden] and the last states.

    Raises NotImplementedError for states of different sizes, which PyTorch's translation takes for an ordinary LSTM.
    """
    hidden, cell = states
    if hidden.shape[2] != cell.shape[2]:
        raise NotImplementedError(PROJECTION)
    return _sequence(x, hidden, args), torch.empty_like(hidden), torch.empty_like(cell)


def _gated(x: torch.Tensor, hidden: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return empty outputs of `aten.gru.input` and `aten.rnn_*.input`: y [time, batch, directions * hidden] and the last state."""
    return _sequence(x, hidden, args), torch.empty_like(hidden)


def _sequence(x: torch.Tensor, hidden: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor:
    """Return an empty y; the last two of the operators' arguments are `bidirectional` and `batch_first`."""
    *_, bidirectional, batch_first = args
    batch, time = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    y = x.new_empty((time, batch, hidden.shape[2] * (2 if bidirectional else 1)))
    return y.transpose(0, 1) if batch_first else y
