"""Layers as OpenVINO runs them: precision and kernel of each, which need not be those that the model asked for."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

STILL = frozenset({"Const", "Input", "Output", "Parameter", "Result"})
"""Layers that compute nothing."""
PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution", "Deconvolution", "LSTMSequence", "GRUSequence"})
"""Layers whose precision decides how long a model takes."""


@dataclass(frozen=True, slots=True)
class Executed:
    """Layers of one kind: how many run in that precision with that kernel."""

    layer: str
    precision: str
    """OpenVINO's name: `f32`, `f16`, `bf16`, `i32`."""
    kernel: str
    count: int


def executed_layers(model: Any) -> tuple[Executed, ...]:
    """Every layer of a compiled model (from `get_runtime_model`), counted, the most frequent first."""
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for operation in model.get_ordered_ops():
        info = operation.get_rt_info()
        layer, precision, kernel = (_text(info, key) for key in ("layerType", "runtimePrecision", "primitiveType"))
        if layer not in STILL:
            counts[layer, precision, kernel] += 1
    return tuple(Executed(*key, count) for key, count in counts.most_common())


def products_in(layers: tuple[Executed, ...], precision: str) -> tuple[int, int]:
    """Number of matrix products and convolutions in one precision, as OpenVINO names it, and of all of them."""
    products = [each for each in layers if each.layer in PRODUCTS]
    return sum(each.count for each in products if each.precision == precision), sum(each.count for each in products)


def _text(info: Any, key: str) -> str:
    try:
        value = info[key]
    except (KeyError, RuntimeError):
        return "unknown"
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
