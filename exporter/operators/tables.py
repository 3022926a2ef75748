"""Tables of operators that need FP32, each row with its why. Used where nothing was measured.

They add to the schemas (`demi.exporter.operators.schemas`) what a runtime lacks or does inside its kernels.
"""

from __future__ import annotations

from onnxconverter_common.float16 import DEFAULT_OP_BLOCK_LIST

from demi.plan import Reason

DISPUTED = {
    "Min": "half kernels exist in ONNX Runtime since 1.8 and in TensorRT; picking one of two halves is exact",
    "Max": "as Min",
    "Resize": "only its `roi` and `scales` need float32, and their schema type keeps them there",
    "Upsample": "as Resize",
    "CumSum": "has a half kernel; it is kept for its running sum instead (below)",
    "Range": "kept for its integers instead (below)",
    "TopK": "kept for its order instead (below)",
    "NonMaxSuppression": "its schema has no half type",
}
"""Rows of onnxconverter-common's block list that do not hold as `no half kernel`."""

NO_HALF_KERNEL = frozenset(DEFAULT_OP_BLOCK_LIST) - frozenset(DISPUTED)
"""Operators without a half kernel: onnxconverter-common keeps this list, from years of reports."""

KEEP: dict[str, tuple[Reason, str]] = {
    "ReduceMean": (Reason.REDUCTION, "the CUDA kernel stores the sum in half before it divides"),
    "ReduceSum": (Reason.REDUCTION, "the sum itself must fit half"),
    "ReduceL1": (Reason.REDUCTION, "the sum itself must fit half"),
    "ReduceL2": (Reason.REDUCTION, "the CUDA kernel squares in half: beyond 255.9 that is infinite"),
    "ReduceSumSquare": (Reason.REDUCTION, "the CUDA kernel squares in half: beyond 255.9 that is infinite"),
    "ReduceLogSum": (Reason.REDUCTION, "the sum itself must fit half"),
    "ReduceLogSumExp": (Reason.REDUCTION, "the CUDA kernel stores exponentials and their sum in half"),
    "ReduceProd": (Reason.REDUCTION, "a product leaves half's range quickly"),
    "CumSum": (Reason.REDUCTION, "the CUDA kernel adds in half, which soon stops counting"),
    "CumProd": (Reason.REDUCTION, "a product that grows step by step, rounded at each"),
    "Col2Im": (Reason.REDUCTION, "blocks that overlap are added in half, one after the other"),
    "LinearAttention": (
        Reason.REDUCTION,
        "a state goes from token to token, rounded at each where a kernel keeps it in half",
    ),
    "GatedDeltaNet": (Reason.REDUCTION, "as LinearAttention"),
    "Pow": (Reason.EXPONENTIAL, "a square is infinite beyond 255.9"),
    "Exp": (Reason.EXPONENTIAL, "infinite beyond 11.09"),
    "Log": (Reason.EXPONENTIAL, "its input has lost everything below 6e-8"),
    "Softplus": (Reason.EXPONENTIAL, "an exponential and a logarithm in one"),
    "Range": (Reason.INTEGER_VALUED, "counts in float"),
    "NonMaxSuppression": (Reason.SELECTION, "ranks boxes by close scores"),
    "RoiAlign": (Reason.SELECTION, "coordinates need more than eleven bits"),
    "GridSample": (Reason.SELECTION, "coordinates need more than eleven bits"),
    "CropAndResize": (Reason.SELECTION, "coordinates need more than eleven bits"),
    "TopK": (Reason.SELECTION, "ranks close scores"),
    "SoftmaxCrossEntropyLoss": (Reason.REDUCTION, "a logarithm and a long sum"),
    "NegativeLogLikelihoodLoss": (Reason.REDUCTION, "a logarithm and a long sum"),
}
"""Operators kept in FP32 by default, with what half does to them on a GPU."""

SCATTERS: dict[tuple[str, str], tuple[Reason, str]] = {
    ("ScatterElements", "add"): (Reason.REDUCTION, "updates are added in half, one after the other"),
    ("ScatterElements", "mul"): (Reason.REDUCTION, "updates are multiplied in half, one after the other"),
    ("ScatterND", "add"): (Reason.REDUCTION, "updates are added in half, one after the other"),
    ("ScatterND", "mul"): (Reason.REDUCTION, "updates are multiplied in half, one after the other"),
    ("ScatterND", "max"): (Reason.NO_HALF_KERNEL, "ONNX Runtime's CPU kernel loads in half, and fails when it runs"),
    ("ScatterND", "min"): (Reason.NO_HALF_KERNEL, "ONNX Runtime's CPU kernel loads in half, and fails when it runs"),
}
"""Scatters that are kept in FP32, by operator and reduction; the same CPU kernel fails for all but ScatterElements' min and max."""

NORMALIZING = frozenset({"Add", "Sub", "Sqrt", "Div", "Reciprocal", "Mul", "Pow", "Clip", "Max"})
"""The operators of a normalization written in primitives, around its reduction."""

ARITHMETIC_ON_COUNTS = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Floor",
        "Ceil",
        "Round",
        "Mod",
        "Pow",
        "Exp",
        "Log",
        "Sin",
        "Cos",
        "Reciprocal",
        "Min",
        "Max",
        "Clip",
        "Abs",
        "Sqrt",
        "MatMul",
        "Einsum",
        "Gemm",
    }
)
"""Arithmetic that carries positions and counts on: rotary and sinusoidal tables among them."""


ALWAYS_SINGLE = {
    op: KEEP[op]
    for op in (
        "CumSum",
        "CumProd",
        "Col2Im",
        "LinearAttention",
        "GatedDeltaNet",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceProd",
        "NonMaxSuppression",
        "RoiAlign",
        "GridSample",
        "CropAndResize",
        "Range",
        "SoftmaxCrossEntropyLoss",
        "NegativeLogLikelihoodLoss",
    )
}
"""Operators no measurement brings to half: what their kernels do inside is not in the samples' hands."""
