"""Half weights of PyTorch models in FP32, which holds each of them exactly: checkpoints are published in bfloat16.

A module's weights are widened in place. A torch.export program has the types of all its tensors written down: those
become FP32 as well, in its nodes and in what PyTorch knows of their results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from demi.errors import SourceError
from demi.exporter.pytorch.example import Example
from demi.exporter.pytorch.input_dtypes import in_types

HALF = {torch.float16: "FP16", torch.bfloat16: "BF16"}


def half_types(tensors: Iterator[torch.Tensor]) -> tuple[str, ...]:
    """The half types among tensors, as people call them."""
    found = {tensor.dtype for tensor in tensors}
    return tuple(name for dtype, name in HALF.items() if dtype in found)


def held(module: Any) -> Iterator[torch.Tensor]:
    """The parameters and buffers of a module."""
    yield from module.parameters()
    yield from module.buffers()


def widen_module(module: Any, fit: Callable[[], Example]) -> tuple[Example, tuple[str, ...]]:
    """The example that `fit` finds for a module whose half weights became FP32, in place, and which types they had.

    A module whose code names half itself does not run with other weights: then they stay as they are, and no type is
    given. Raises what `fit` raises for it.
    """
    tensors = [tensor for tensor in held(module) if tensor.dtype in HALF]
    was = half_types(iter(tensors))
    kept = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    if was:
        with suppress(SourceError):
            return fit(), was
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data
    return fit(), ()


def widen_program(program: Any) -> tuple[str, ...]:
    """Make every half tensor of a torch.export program FP32, in place; the half types that its weights and inputs had."""
    constants = [value for value in program.constants.values() if isinstance(value, torch.Tensor)]
    args, kwargs = program.example_inputs or ((), {})
    inputs = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    was = half_types(iter((*program.state_dict.values(), *constants, *inputs)))
    if not was:
        return ()
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            _widen_graph(module)
        for buffer in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            buffer.data = _wide(buffer.data)
    for table in (program.state_dict, program.constants):
        _widen_table(table)
    program._example_inputs = in_types((args, kwargs), _wide)
    return was


def _widen_graph(module: torch.fx.GraphModule) -> None:
    for node in module.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, _wide_type)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, _wide_type)
        if "val" in node.meta:
            node.meta["val"] = in_types(node.meta["val"], _wide)
        node.meta.pop("tensor_meta", None)
    module.recompile()


def _widen_table(table: dict[str, Any] | Mapping[str, Any]) -> None:
    assert isinstance(table, dict)
    for name, value in table.items():
        if isinstance(value, torch.nn.Parameter) and value.dtype in HALF:
            table[name] = torch.nn.Parameter(_wide(value.data), requires_grad=value.requires_grad)
        elif isinstance(value, torch.Tensor):
            table[name] = _wide(value)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def _wide_type(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in HALF else value
