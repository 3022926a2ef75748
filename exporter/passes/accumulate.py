"""FP32 accumulation: cast around half matrix products, so that they sum in FP32.

TensorRT chooses the accumulator of a half product, and may choose a half one. A product whose inputs are cast to FP32
must sum in FP32; TensorRT folds the casts into a kernel that still reads half. (Torch-TensorRT's `use_fp32_acc` writes
the same graph.)
"""

from __future__ import annotations

import onnx_ir as ir

PRODUCTS = frozenset({"MatMul", "Gemm"})
HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def accumulate_in_single(model: ir.Model) -> int:
    """Write casts around every half MatMul and Gemm, in place; return the number of products.

    After: the inputs and outputs of such a product keep their types, and between the casts it computes in FP32. The
    results are those of a half product that sums in FP32.
    """
    products = [node for node in model.graph.all_nodes() if _is_half_product(node)]
    for node in products:
        _surround(node)
    return len(products)


def _is_half_product(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in PRODUCTS and node.outputs[0].dtype in HALF


def _surround(node: ir.Node) -> None:
    graph, result = node.graph, node.outputs[0]
    assert graph is not None
    half = result.dtype
    assert half is not None
    for position, value in enumerate(node.inputs):
        if value is not None:
            wide = _cast(value, ir.DataType.FLOAT, f"{node.name}_single{position}")
            graph.insert_before(node, wide)
            node.replace_input_with(position, wide.outputs[0])
    result.type = ir.TensorType(ir.DataType.FLOAT)
    narrow = _cast(result, half, f"{node.name}_half")
    graph.insert_after(node, narrow)
    result.replace_all_uses_with(narrow.outputs[0], replace_graph_outputs=True)
    narrow.replace_input_with(0, result)
    name = result.name
    result.name, narrow.outputs[0].name = f"{name}_single", name


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], attributes={"to": int(to)}, name=name)
    node.outputs[0].name = f"{name}_value"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(to), value.shape
    return node
