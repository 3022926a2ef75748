"""ONNX's checker, also for files with foreign operators in ONNX's own domain.

ONNX Runtime's optimizer and model builder write such files (SimplifiedLayerNormalization, for one), and so do exporters
for TensorRT plugins. The checker accepts only ONNX's operators there, so it gets a copy in which the others are in a
domain that it ignores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from demi.exporter.operators.schemas import (
    find_schema,
    is_runtime_operator,
    opset_version,
    runtime_has,
)

IGNORED_DOMAIN = "elsewhere"
"""The domain that such operators get in the copy."""


def check_file(path: Path, model: ir.Model, *, full: bool = False, foreign: bool = False) -> None:
    """Raise onnx.checker.ValidationError (or, with `full`, InferenceError) unless the file of this model is valid.

    With `full`, types and shapes are checked as well; with `foreign`, unknown operators are allowed. External weights
    are not loaded; ValueError for a weight file outside the model's folder.
    """
    names = runtime_operators(model)
    if foreign:
        names |= {node.op_type for node in foreign_nodes(model)}
    if not names:
        onnx.checker.check_model(str(path), full_check=full)
        return
    copy = onnx.load(path, load_external_data=False)
    for node in _nodes(copy.graph.node):
        if node.domain in ("", "ai.onnx") and node.op_type in names:
            node.domain = IGNORED_DOMAIN
    copy.opset_import.append(onnx.helper.make_opsetid(IGNORED_DOMAIN, 1))
    _leave_out_external(copy)
    onnx.checker.check_model(copy, full_check=full)


def runtime_operators(model: ir.Model) -> frozenset[str]:
    """Return the operators of ONNX Runtime that a model has in ONNX's own domain."""
    return frozenset(node.op_type for node in _all(model) if is_runtime_operator(node, opset_version(node, model)))


def foreign_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes whose operators are in neither ONNX nor ONNX Runtime, and are not defined by the model."""
    defined = {(domain, name) for domain, name, *_ in model.functions}
    return [
        node
        for node in _all(model)
        if (node.domain, node.op_type) not in defined
        and not find_schema(node.op_type, node.domain, opset_version(node, model))
        and not (node.domain not in ("", "ai.onnx") and runtime_has(node.op_type, node.domain))
    ]


def _all(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of a model, including those of its functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield all nodes, including those of graphs in attributes."""
    for node in nodes:
        yield node
        for graph in _graphs(node):
            yield from _nodes(graph.node)


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _leave_out_external(copy: ModelProto) -> None:
    """Turn external weights into inputs: the checker would look for their files in the working folder."""
    for tensor in [each for each in copy.graph.initializer if each.data_location == TensorProto.EXTERNAL]:
        location = PurePosixPath(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))
        if location.is_absolute() or ".." in location.parts or "\\" in str(location):
            raise ValueError(f"`{tensor.name}` is kept in `{location}`, which is not below the model's folder")
        if all(value.name != tensor.name for value in copy.graph.input):
            shape = list(tensor.dims)
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
        copy.graph.initializer.remove(tensor)
