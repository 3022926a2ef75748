"""An FP32 model in OpenVINO's own format, with weights in half and, where a plan has them, nodes that stay FP32.

OpenVINO packs the weights of products in the precision in which it computes, and keeps the model's own beside them: in
half those take half the memory, and in a file that is mapped none that a process owns. They are rounded to nearest even
here, as OpenVINO's kernels do; `compress_to_fp16` of OpenVINO itself would have them cut off on the way from FP16 to
BF16, which has doubled the error of a ResNet-50.

The format's attributes `decompression` (a conversion that is not folded away when a model is compiled) and `precise` (a
layer that is computed in FP32 whatever the precision hint) are written into the file, since OpenVINO's Python interface
does not set them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from demi.errors import SourceError
from demi.float16 import FORMATS, FP16, HalfFormat, half_loss, to_half
from demi.runtime.openvino.failures import reason
from demi.runtime.openvino.session import require_openvino

GRAPH, WEIGHTS = ".xml", ".bin"
"""Suffixes of the two files."""

FEWEST = 1024
"""Elements of a constant that is worth storing in half."""

READERS = frozenset({"MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData", "Gather"})
"""OpenVINO's operators that read weights in half as they are."""

HALVED = "__in_half"
"""Ends the names of the conversions from stored weights."""


def write_stored(
    model: Path, path: Path, half: Literal["fp16", "bf16"], precise: AbstractSet[str] = frozenset()
) -> tuple[str, ...]:
    """Write an ONNX file in OpenVINO's format as `path` with each suffix; return the nodes marked to stay FP32.

    `precise` names the nodes to mark; those that OpenVINO's graph does not have are left out. Their weights and those
    beyond the range of `half` stay FP32. Raises SourceError where OpenVINO cannot read the model or write the files.
    """
    ov = require_openvino()
    try:
        graph = ov.Core().read_model(str(model))
        _store_in_half(ov, graph, FORMATS[half], precise)
        ov.save_model(graph, str(path.with_suffix(GRAPH)), compress_to_fp16=False)
        return _mark(path.with_suffix(GRAPH), precise)
    except (RuntimeError, OSError) as error:
        raise SourceError(f"OpenVINO cannot store the model: {reason(error)}", where=str(model)) from error


def digest_of(path: Path) -> str:
    """Return one SHA-256 over those of both files; OSError where one is missing."""
    both = hashlib.sha256()
    for suffix in (GRAPH, WEIGHTS):
        with path.with_suffix(suffix).open("rb") as file:
            both.update(hashlib.file_digest(file, "sha256").digest())
    return both.hexdigest()


def _store_in_half(ov: Any, graph: Any, half: HalfFormat, precise: AbstractSet[str]) -> None:
    for constant in graph.get_ordered_ops():
        if constant.get_type_name() != "Constant" or constant.get_output_element_type(0) != ov.Type.f32:
            continue
        readers = [target.get_node() for target in constant.output(0).get_target_inputs()]
        if constant.data.size < FEWEST or not _all_read(readers, precise):
            continue
        if not half_loss(constant.data, half).overflowed:
            _replace(ov, constant, half)


def _all_read(readers: list[Any], precise: AbstractSet[str]) -> bool:
    return all(node.get_type_name() in READERS and node.get_friendly_name() not in precise for node in readers)


def _replace(ov: Any, constant: Any, half: HalfFormat) -> None:
    """Let the readers of a constant read it from half, through a conversion to FP32."""
    kind = ov.Type.f16 if half is FP16 else ov.Type.bf16
    stored = ov.Tensor(kind, ov.Shape(list(constant.data.shape)))
    stored.data.view(np.uint16)[...] = to_half(constant.data, half).view(np.uint16)
    converted = ov.opset13.convert(ov.op.Constant(stored), "f32")
    converted.set_friendly_name(constant.get_friendly_name() + HALVED)
    for target in constant.output(0).get_target_inputs():
        target.replace_source_output(converted.output(0))


def _mark(path: Path, precise: AbstractSet[str]) -> tuple[str, ...]:
    tree = ElementTree.parse(path)  # written just now, by this process
    marked = []
    for layer in tree.iter("layer"):
        name, kind = layer.get("name", ""), layer.get("type")
        if kind == "Convert" and name.endswith(HALVED):
            _add_attribute(layer, "decompression")
        elif name in precise and kind != "Const":
            _add_attribute(layer, "precise")
            marked.append(name)
    tree.write(path)
    return tuple(marked)


def _add_attribute(layer: ElementTree.Element, name: str) -> None:
    info = layer.find("rt_info")
    if info is None:
        info = ElementTree.Element("rt_info")
        layer.insert(1 if layer.find("data") is not None else 0, info)
    ElementTree.SubElement(info, "attribute", name=name, version="0")
