"""Comparison of a rescaled model's graph with the original's: the same nodes, connections and borders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from demi.calibration.graph_pieces import subgraphs_of
from demi.calibration.rescaling.certificate import Certificate
from demi.calibration.rescaling.forward import STANDARD


def other_nodes(original: ir.Model, rescaled: ir.Model, certificate: Certificate) -> list[str]:
    """Return what differs from the original with its certified products: nodes, connections, inputs, outputs, opsets."""
    if original.functions or rescaled.functions:
        return ["a model with functions cannot be compared; inline them"]
    if dict(original.opset_imports) != dict(rescaled.opset_imports):
        return ["the rescaled model imports other operator sets than the original"]
    left, origins = _without_products(original, rescaled, certificate)
    before = list(original.graph.all_nodes())
    if [node.name for node in before] != [node.name for node in left]:
        return ["the rescaled model has other nodes than the original"]
    if len({node.name for node in before}) < len(before):
        return ["nodes of the original share a name"]
    scaled = {(each.node, each.attribute) for each in certificate.numbers}
    problems = [
        f"`{old.name}` is another node in the rescaled model"
        for old, new in zip(before, left, strict=True)
        if _parts_of(old, {}, scaled) != _parts_of(new, origins, scaled)
    ]
    products = {node.name for node in rescaled.graph.all_nodes()} - {node.name for node in before}
    if list(_borders(original.graph, {}, set())) != list(_borders(rescaled.graph, origins, products)):
        problems.append("the rescaled model has other inputs, outputs or branches than the original")
    return problems


def _without_products(
    original: ir.Model, rescaled: ir.Model, certificate: Certificate
) -> tuple[list[ir.Node], dict[str, str]]:
    """Return the nodes that are no certified product with a power of two, and what other names stand for in the original."""
    origins = {each.name: each.source for each in certificate.constants if each.source}
    factors = {each.name for each in certificate.constants if not each.source}
    known = {value.name for node in original.graph.all_nodes() for value in node.outputs}
    left = []
    for node in rescaled.graph.all_nodes():
        is_product = node.op_type == "Mul" and node.domain in STANDARD and len(node.inputs) == 2
        factor, tensor = (node.inputs[1], node.inputs[0]) if is_product else (None, None)
        if factor is None or tensor is None or factor.name not in factors or not factor.is_initializer():
            left.append(node)
        elif node.outputs[0].name in known:  # an output of the model, behind its tensor, which has a new name
            origins[tensor.name or ""] = node.outputs[0].name or ""
        else:
            origins[node.outputs[0].name or ""] = tensor.name or ""
    return left, origins


def _parts_of(node: ir.Node, origins: Mapping[str, str], scaled: set[tuple[str, str]]) -> object:
    """Return the parts of a node that must be equal: operator, uncertified attributes, inputs and outputs."""
    attributes = {name: _content(each) for name, each in node.attributes.items() if (node.name, name) not in scaled}
    inputs = [_origin(value, origins) for value in node.inputs]
    return node.op_type, node.domain, node.version, attributes, inputs, [_origin(v, origins) for v in node.outputs]


def _origin(value: ir.Value | None, origins: Mapping[str, str]) -> str | None:
    return None if value is None else origins.get(value.name or "", value.name)


def _content(attribute: ir.Attr) -> object:
    """Return what an attribute holds, in a form to compare; graphs are compared by their nodes and borders."""
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return attribute.type
    if attribute.type is ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()
    return attribute.type, attribute.value if attribute.type is not ir.AttributeType.TENSORS else str(attribute.value)


def _borders(graph: ir.Graph, origins: Mapping[str, str], products: set[str | None]) -> Iterator[object]:
    """Yield the inputs, nodes and outputs of a graph and of those inside it, by name."""
    yield [value.name for value in graph.inputs]
    yield [node.name for node in graph if node.name not in products]
    yield [_origin(value, origins) for value in graph.outputs]
    for node in graph:
        for body in subgraphs_of(node):
            yield from _borders(body, origins, products)
