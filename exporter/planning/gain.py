"""The gain from half precision, in FLOPs and bytes, and a warning where it is negligible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from demi.calibration.sessions import weight_bytes
from demi.exporter.planning.costs import CONTRACTIONS
from demi.plan import PrecisionPlan

LITTLE = 0.1
"""Share of FLOPs in half, and of the weights' bytes saved, up to which a conversion is not worth its casts."""

INTEGER_PRODUCTS = frozenset(
    """
    ConvInteger DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulBnb4 MatMulInteger MatMulInteger16 MatMulIntegerToFloat
    MatMulNBits QAttention QGemm QLinearConv QLinearMatMul QMoE QOrderedMatMul
    """.split()
)
"""Operators, ONNX's and ONNX Runtime's, that multiply quantized numbers."""

CARRIES = frozenset("Transpose Reshape Squeeze Unsqueeze Identity".split())
"""Operators that pass a dequantized weight on unchanged."""


@dataclass(frozen=True, slots=True)
class Gain:
    """The parts of a model that half precision reaches."""

    half_nodes: int
    half_flops: float | None
    """Share of FLOPs in half; None where no sizes were observed, as for a given plan."""
    weight_share: float
    """Bytes of the weights, relative to those of the source model."""
    quantized: int
    """Matrix products and convolutions of quantized numbers."""
    products: int
    """All matrix products and convolutions."""
    nothing: str = ""
    """The reason that no node is half, for users; empty when one is."""

    @property
    def objection(self) -> str:
        """Return a warning against this conversion; empty where half pays."""
        if not self.half_nodes:
            return f"no node computes in half: {self.nothing}"
        if self.half_flops is None or self.half_flops > LITTLE or self.weight_share <= 1 - LITTLE:
            return ""
        why = f"{self.half_flops:.1%} of its FLOPs are in half, and its weights take {self.weight_share:.3f} of their bytes"
        if self.quantized:
            why += f"; {self.quantized} of its {self.products} products are quantized already, which saves more than half does"
        return f"half precision gains almost nothing for this model: {why}"


def gain(
    prepared: ir.Model, lowered: ir.Model, plan: PrecisionPlan, single_flops: float | None, floats: Sequence[str]
) -> Gain:
    """Measure the gain of a conversion; `floats` are the float types of the source model."""
    before, after = weight_bytes(prepared), weight_bytes(lowered)
    products = [node for node in prepared.graph.all_nodes() if node.op_type in CONTRACTIONS | INTEGER_PRODUCTS]
    return Gain(
        half_nodes=plan.half_nodes,
        half_flops=None if single_flops is None else 1 - single_flops,
        weight_share=after / before if before else 1.0,
        quantized=sum(_is_quantized(node) for node in products),
        products=len(products),
        nothing="" if plan.half_nodes else _why_nothing(plan, floats),
    )


def _is_quantized(node: ir.Node) -> bool:
    """Return whether a product multiplies integers, or values dequantized for it."""
    return node.op_type in INTEGER_PRODUCTS or any(maker == "DequantizeLinear" for maker in _makers(node))


def _makers(node: ir.Node) -> Iterator[str]:
    """Yield the operators that make the operands of a product."""
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        while maker is not None and maker.op_type in CARRIES and maker.inputs[0] is not None:
            maker = maker.inputs[0].producer()
        if maker is not None:
            yield maker.op_type


def _why_nothing(plan: PrecisionPlan, floats: Sequence[str]) -> str:
    reasons = {decision.reason.value for decision in plan.computing}
    if not reasons:
        named = " and ".join(floats)
        return f"none computes in FP32, {f'its floats are {named}' if named else 'it has no floats'}"
    if reasons == {"cheaper-in-fp32"}:
        return "the casts around them would cost more time than half precision saves"
    if reasons <= {"no-half-type", "no-half-kernel", "unknown-operator", "control-flow"}:
        return "none of its operators has a half type or a half kernel"
    if reasons == {"pinned"}:
        return "--keep-fp32 keeps all of them"
    if "selection" in reasons:
        return (
            "it chooses by numbers too close together to be rounded; export only the part before that choice, such as boxes "
            "and scores, or force nodes to half with --force-half"
        )
    return "this model gains nothing from half precision within its budget; the table gives the reason for every group of nodes"
