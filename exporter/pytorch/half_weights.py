"""Convert half weights of PyTorch models to FP32, which represents each exactly: checkpoints are often bfloat16.

A module's weights are widened in place. A torch.export program records the types of all its tensors: those become
FP32 as well, in its nodes and in the metadata of their results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from demi.errors import SourceError
from demi.exporter.pytorch.example import Example
from demi.exporter.pytorch.input_dtypes import map_tensors

HALF = {torch.float16: "FP16", torch.bfloat16: "BF16"}


def half_types(tensors: Iterator[torch.Tensor]) -> tuple[str, ...]:
    """Return the half types among tensors, as `FP16` and `BF16`."""
    found = {tensor.dtype for tensor in tensors}
    return tuple(name for dtype, name in HALF.items() if dtype in found)


def held(module: Any) -> Iterator[torch.Tensor]:
    """Yield the parameters and buffers of a module."""
    yield from module.parameters()
    yield from module.buffers()


def widen_module(module: Any, fit: Callable[[], Example]) -> tuple[Example, tuple[str, ...]]:
    """Widen a module's half weights in place; return the example that `fit` finds, and the half types there were.

    A module whose code uses half explicitly does not run with other weights: then they are restored, and no type is
    returned. Raises what `fit` raises for it.
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
    """Widen every half tensor of a torch.export program in place; return the half types of its weights and inputs."""
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
    program._example_inputs = map_tensors((args, kwargs), _wide)
    return was


def _widen_graph(module: torch.fx.GraphModule) -> None:
    for node in module.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, _wide_type)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, _wide_type)
        if "val" in node.meta:
            node.meta["val"] = map_tensors(node.meta["val"], _wide)
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
