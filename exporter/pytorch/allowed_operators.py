"""Operators that a torch.export program may name: PyTorch resolves a name below `torch` and calls the result."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch._export.serde.serialize import _SYM_OPS

NAMESPACES = frozenset(
    {
        "aten",
        "prims",
        "quantized",
        "quantized_decomposed",
        "onnx",
        "onnx_symbolic",
        "mkldnn",
        "torchvision",
        "torchaudio",
    }
)
"""Namespaces of operators that only compute; others reach other machines (`c10d`), profile or read files."""

TOUCHES_FILES = frozenset({"from_file", "save"})
"""Operators of `aten` that read or write a file which the model names."""

HIGHER_ORDER = frozenset(
    "cond while_loop scan associative_scan map map_impl wrap_with_set_grad_enabled wrap_with_autocast invoke_subgraph "
    "flex_attention out_dtype hints_wrapper strict_mode wrap".split()
)
"""Operators that take graphs, and only run them."""

_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(?:\.(\w+))?")
"""`torch.ops.aten.add.Tensor`; those that take graphs have no overloads."""


def is_plain_operator(target: str) -> bool:
    """Return whether the operator that a node names only computes."""
    if target in _SYMBOLIC:
        return True
    match = _OPERATOR.fullmatch(target)
    if match is None:
        return False
    namespace, name, overload = match.groups()
    if namespace == "higher_order":
        return name in HIGHER_ORDER and overload is None
    return bool(overload) and namespace in NAMESPACES and name not in TOUCHES_FILES and _computes(*match.groups())


def _computes(namespace: str, name: str, overload: str) -> bool:
    try:
        return isinstance(getattr(getattr(getattr(torch.ops, namespace), name), overload), torch._ops.OpOverload)
    except (AttributeError, RuntimeError):
        return True  # no such operator here: PyTorch raises a better error, and calls nothing


def _spelling(operator: Any) -> str:
    module = "torch" if operator.__module__.startswith("torch") else operator.__module__
    return f"{module}.{operator.__name__}"


_SYMBOLIC = frozenset(map(_spelling, _SYM_OPS))
"""Arithmetic on sizes, by PyTorch's own list of it."""
