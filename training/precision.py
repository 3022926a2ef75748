"""The precisions of a training run: what is computed and what is stored in half."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from demi.errors import InputError


@dataclass(frozen=True, slots=True)
class Precision:
    """One way to train."""

    name: str
    compute: torch.dtype | None = None
    """The type that autocast computes matrix products and convolutions in; None computes in the weights' type."""
    weights: torch.dtype = torch.float32
    scaled: bool = False
    """True if the loss is scaled, so that small gradients are not lost: FP16's smallest number is 2**-24."""

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of forward and loss; the backward pass runs outside of it, in the types of the forward."""
        return torch.autocast(device.type, self.compute) if self.compute is not None else nullcontext()


PRECISIONS = {
    "fp32": Precision("fp32"),
    "fp16": Precision("fp16", torch.float16, scaled=True),
    "bf16": Precision("bf16", torch.bfloat16),
    # Kahan summation keeps what an update loses to the 8 bits of a BF16 weight. Autocast takes FP32 inputs to BF16.
    "bf16-pure": Precision("bf16-pure", torch.bfloat16, weights=torch.bfloat16),
}

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
"""Modules whose parameters stay in FP32: they are few, and a BF16 gain next to 1 has steps of 1/128."""

CHOICES = (*PRECISIONS, "auto")

REFUSED = {
    "fp16-pure": "weights and optimizer state in FP16 end in NaN: AdamW's epsilon of 1e-8 is 0 in FP16, and updates "
    "below 2**-24 vanish",
}


def choose_precision(
    name: str, device: torch.device, *, has_bf16: Callable[[torch.device], bool] | None = None
) -> Precision:
    """Return the precision called `name`; `auto` is bf16 where the device multiplies it in hardware, else fp32.

    Raises InputError for an unknown one, and for one that cannot work, with the reason.
    """
    if name in REFUSED:
        raise InputError(f"{name} is not offered: {REFUSED[name]}", where="--precision", hint="use fp16 or bf16")
    if name == "auto":
        return PRECISIONS["bf16" if (has_bf16 or multiplies_bf16)(device) else "fp32"]
    if name not in PRECISIONS:
        raise InputError(f"unknown precision `{name}`", where="--precision", hint=f"use one of {', '.join(CHOICES)}")
    return PRECISIONS[name]


def with_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a model's parameters in place, and return it; those of normalizations and all buffers stay as they are.

    Running statistics and tables of positions in BF16 would lose most of their digits.
    """
    if dtype is torch.float32:
        return model
    for module in model.modules():
        for parameter in module.parameters(recurse=False) if not isinstance(module, NORMS) else ():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return model


def why_slow(name: str, device: str) -> str:
    """Return a sentence on a device whose half is far slower than its FP32; empty where it is not."""
    compute = PRECISIONS[name].compute if name in PRECISIONS else None
    if compute is None or device != "cpu":
        return ""
    if multiplies_bf16(torch.device(device)) if compute is torch.bfloat16 else multiplies_fp16():
        return ""
    return (
        f"note: this CPU has no {name} hardware and is several times slower in it than in FP32; "
        "--rehearse gives a GPU's numbers at nearly the speed of FP32"
    )


def multiplies_fp16() -> bool:
    """Return whether this CPU multiplies FP16 matrices in hardware."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(flags.get("amx_fp16") or flags.get("avx512_fp16") or flags.get("fp16"))


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies BF16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(flags.get("amx_bf16") or flags.get("avx512_bf16") or flags.get("bf16"))
