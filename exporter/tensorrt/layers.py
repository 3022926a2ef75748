"""The layers of an engine, parsed from the JSON of TensorRT's inspector.

The JSON differs between versions: at the lowest profiling verbosity layers are plain strings, and TensorRT 11 split
`Format/Datatype`. Missing fields stay empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from demi.plan import PrecisionPlan

SCHEMA = 1

_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TYPES = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
    "uint8": "uint8",
    "int8": "int8",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine: usually several nodes in one kernel."""

    name: str
    kind: str = ""
    nodes: tuple[str, ...] = ()
    """The ONNX nodes in it."""
    reads: tuple[str, ...] = ()
    """The types of its inputs."""
    writes: tuple[str, ...] = ()
    """The types of its outputs."""
    tactic: str = ""
    mean_ms: float | None = None
    planned: str = ""
    """The plan's precision of its nodes: `half`, `single` or `mixed`; empty for nodes that the plan does not name."""


def read_layers(text: str, times: Mapping[str, float], plan: PrecisionPlan | None = None) -> list[Layer]:
    """Parse the inspector's JSON into layers, with their mean times and the plan's precision of their nodes."""
    document: dict[str, Any] = msgspec.json.decode(text)
    return [_layer(raw, times, plan) for raw in document.get("Layers", [])]


def layers_json(layers: Sequence[Layer], tensorrt: str, gpu: str, shapes: Mapping[str, Sequence[int]]) -> bytes:
    """Return `layers.json`: the layers, and the number of layers that write each type."""
    document = {
        "schema": SCHEMA,
        "tensorrt": tensorrt,
        "gpu": gpu,
        "timed_shapes": {name: list(shape) for name, shape in shapes.items()},
        "written_types": dict(Counter(kind for layer in layers for kind in set(layer.writes))),
        "total_ms": sum(layer.mean_ms or 0.0 for layer in layers),
        "layers": layers,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _layer(raw: Any, times: Mapping[str, float], plan: PrecisionPlan | None) -> Layer:
    if isinstance(raw, str):
        return Layer(raw, mean_ms=times.get(raw))
    name = str(raw.get("Name", ""))
    nodes = tuple(dict.fromkeys(_ONNX.findall(str(raw.get("Metadata", "")))))
    return Layer(
        name=name,
        kind=str(raw.get("LayerType", "")),
        nodes=nodes,
        reads=_types(raw.get("Inputs")),
        writes=_types(raw.get("Outputs")),
        tactic=str(raw.get("TacticName", "")),
        mean_ms=times.get(name),
        planned=_planned(nodes, plan),
    )


def _types(tensors: Any) -> tuple[str, ...]:
    if not isinstance(tensors, list):
        return ()
    return tuple(_type(tensor) for tensor in tensors if isinstance(tensor, dict))


def _type(tensor: Mapping[str, Any]) -> str:
    """Return `fp16` for `Row major linear FP16 format`, `Half` and the like; the text itself without a known type."""
    text = str(tensor.get("DataType") or tensor.get("Datatype") or tensor.get("Format/Datatype") or "")
    for word in re.findall(r"[A-Za-z]+\d*", text):
        if word.lower() in _TYPES:
            return _TYPES[word.lower()]
    return text


def _planned(nodes: Sequence[str], plan: PrecisionPlan | None) -> str:
    kinds = {plan[name].precision.value for name in nodes if name in plan.decisions} if plan is not None else set()
    return "mixed" if len(kinds) > 1 else next(iter(kinds), "")
