"""Rehearsal: the numbers that a GPU computes in half, on a processor whose own half is slow or missing.

Tensors have the half type, so that storing them rounds and overflows as it does on a GPU, forward and backward. Products
are computed in FP32 and rounded once, as tensor cores do with their FP32 accumulators; PyTorch's kernels for a CPU do the
same elementwise. Autocast follows CUDA's lists of operators, which keep more in FP32 than those of a CPU.

Not rehearsed: the order of a GPU's sums, and accumulation in half, which PyTorch allows for FP16 where it is switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

HALVES = (torch.float16, torch.bfloat16)

aten = torch.ops.aten

PRODUCTS: frozenset[Any] = frozenset(
    packet
    for name in (
        "mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "addr",
        "convolution", "convolution_backward", "_convolution", "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward",
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward",
    )
    if (packet := getattr(aten, name, None)) is not None
)  # fmt: skip
"""Operators that sum up products. A CPU without half hardware computes them many times slower than in FP32."""

_FP32_NAMES = (
    "acos", "asin", "cosh", "cosine_similarity", "cdist", "cumprod", "cumsum", "dist", "erfinv", "exp", "expm1", "log",
    "log10", "log1p", "log2", "log_softmax", "logsumexp", "norm", "pow", "prod", "reciprocal", "renorm", "rsqrt", "sinh",
    "softmax", "sum", "tan", "__pow__", "__rpow__", "__rdiv__", "__rtruediv__",
)  # fmt: skip
_FP32_FUNCTIONAL = (
    "binary_cross_entropy_with_logits", "cosine_embedding_loss", "cross_entropy", "gaussian_nll_loss", "group_norm",
    "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss", "layer_norm", "log_softmax", "margin_ranking_loss",
    "mse_loss", "multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss", "nll_loss", "normalize",
    "pdist", "poisson_nll_loss", "rms_norm", "smooth_l1_loss", "soft_margin_loss", "softmax", "softmin", "softplus",
    "triplet_margin_loss",
)  # fmt: skip

IN_FP32: frozenset[Any] = frozenset(
    found
    for place, names in (
        (torch, _FP32_NAMES),
        (Tensor, _FP32_NAMES),
        (torch.special, ("softmax", "log_softmax", "expm1", "log1p", "logsumexp")),
        (torch.linalg, ("norm", "vector_norm", "matrix_norm")),
        (functional, _FP32_FUNCTIONAL),
    )
    for name in names
    if (found := getattr(place, name, None)) is not None
)
"""Functions that CUDA's autocast computes in FP32, by PyTorch's page "Autocast Op Reference"."""


@contextmanager
def rehearsing() -> Iterator[None]:
    """Compute products of half tensors in FP32 and round them, forward and backward, inside this block."""
    with _Products():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def cuda_autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Cast as CUDA's autocast does, on any device."""
    with torch.autocast(device.type, dtype), _InFp32():
        yield


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Below autograd, so that gradients pass here as well."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in PRODUCTS:
            return func(*args, **kwargs)
        half = next((t.dtype for t in _tensors([*args, *kwargs.values()]) if t.dtype in HALVES), None)
        if half is None:
            return func(*args, **kwargs)
        found = func(*_each(args, _to_single), **_each(dict(kwargs), _to_single))
        return _rounded(func, found, half)


class _InFp32(TorchFunctionMode):
    """Above autograd: an operator on the list reads FP32, and what comes back to its input is rounded to the input's type."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in IN_FP32 and torch.is_autocast_enabled("cpu") and kwargs.get("dtype") is None:
            args, kwargs = _each(args, _to_single), _each(kwargs, _to_single)
        return func(*args, **kwargs)


def _rounded(func: Any, found: Any, half: torch.dtype) -> Any:
    """Round the results of a product to half; attention's sums of exponentials stay in FP32, as a GPU keeps them."""
    if isinstance(found, Tensor):
        return found.to(half)
    keeps = 1 if func.overloadpacket is aten._scaled_dot_product_flash_attention_for_cpu else None
    return type(found)(
        each if place == keeps or not isinstance(each, Tensor) or each.dtype is not torch.float32 else each.to(half)
        for place, each in enumerate(found)
    )


def _to_single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALVES else tensor


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_each(each, change) for each in value)
    if type(value) is dict:
        return {key: _each(each, change) for key, each in value.items()}
    return value
