"""The two half-precision formats: their limits, conversion, and what an array loses in them.

| format | bits (sign, exponent, fraction) | largest | smallest normal | integers exact to |
| --- | --- | --- | --- | --- |
| FP16 (IEEE 754 binary16) | 1, 5, 10 | 65,504 | 2^-14 | 2,048 |
| BF16 (the upper half of binary32) | 1, 8, 7 | about 3.39e38 | 2^-126 | 256 |

Values are rounded to nearest, ties to even, like on GPUs and in ONNX `Cast`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demi.errors import InputError
from demi.tensors import Array, DType

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HalfFormat:
    """The limits of one 16-bit floating point format."""

    dtype: DType
    max: float
    smallest_normal: float
    smallest_subnormal: float
    epsilon: float
    """Spacing of the numbers just above 1."""
    exact_integers: int
    """Largest magnitude up to which every integer is exact."""

    @property
    def overflows_from(self) -> float:
        """Return the smallest magnitude that rounds to infinity: half a step beyond `max`, where the tie goes to even."""
        return self.max * (1 + self.epsilon / 4 / (1 - self.epsilon / 2))

    @property
    def name(self) -> str:
        """Return `fp16` or `bf16`, as on the command line."""
        return self.dtype.value.lower()


FP16 = HalfFormat(DType.FP16, 65504.0, 2.0**-14, 2.0**-24, 2.0**-10, 2048)
BF16 = HalfFormat(DType.BF16, float(np.uint32(0x7F7F0000).view(np.float32)), 2.0**-126, 2.0**-133, 2.0**-7, 256)

FORMATS = {FP16.name: FP16, BF16.name: BF16}


def half_format(name: str) -> HalfFormat:
    """Return the format called `fp16` or `bf16`. Raises InputError for other names."""
    if name not in FORMATS:
        raise InputError(f"unknown precision `{name}`", hint="use fp16 or bf16")
    return FORMATS[name]


def to_half(values: Array, fmt: HalfFormat) -> Array:
    """Round `values` to the format; returns float16 for FP16, and bits in uint16 for BF16."""
    if fmt is FP16:
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(values, dtype=np.float32).astype(np.float16)
    return _bf16_bits(np.asarray(values, dtype=np.float32, order="C"))


def from_half(values: Array, fmt: HalfFormat) -> Float32:
    """Return the exact float32 values of an array from `to_half`."""
    if fmt is FP16:
        return values.astype(np.float32)
    return np.asarray(values.astype(np.uint32) << 16).view(np.float32)  # shifting a 0-d array returns a scalar


def round_through(values: Array, fmt: HalfFormat) -> Float32:
    """Round `values` to the format and return them as float32: the values that a half tensor would hold."""
    return from_half(to_half(values, fmt), fmt)


def _bf16_bits(values: Float32) -> NDArray[np.uint16]:
    try:
        import ml_dtypes  # installed with onnx, and thirty times as fast; servers have neither
    except ImportError:
        return _bf16_bits_by_hand(values)
    with np.errstate(all="ignore"):
        return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def _bf16_bits_by_hand(values: Float32) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    # Rounding could carry a NaN's payload into the sign or to infinity: set its quiet bit instead.
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


@dataclass(frozen=True, slots=True)
class HalfLoss:
    """Losses of an array that is stored in half, as counts of elements."""

    overflowed: int
    """Finite values that become infinite."""
    vanished: int
    """Non-zero values that become zero."""
    subnormal: int
    """Non-zero values below the smallest normal number, which keep fewer digits."""
    largest: float
    """The largest finite magnitude before rounding (0 for an empty array)."""

    def __bool__(self) -> bool:
        return bool(self.overflowed or self.vanished)

    def merge(self, other: HalfLoss) -> HalfLoss:
        """Return the losses of two pieces of one array together."""
        return HalfLoss(
            overflowed=self.overflowed + other.overflowed,
            vanished=self.vanished + other.vanished,
            subnormal=self.subnormal + other.subnormal,
            largest=max(self.largest, other.largest),
        )


def half_loss(values: Array, fmt: HalfFormat) -> HalfLoss:
    """Count the losses of `values` in the format; long arrays are processed in pieces."""
    flat = np.asarray(values, dtype=np.float32).reshape(-1)
    if flat.size > _PIECE:
        pieces = (half_loss(flat[start : start + _PIECE], fmt) for start in range(0, flat.size, _PIECE))
        return functools.reduce(HalfLoss.merge, pieces)
    magnitude = np.abs(flat)
    finite = magnitude[np.isfinite(magnitude)] if not np.isfinite(magnitude.max(initial=0.0)) else magnitude
    zeros = finite.size - int(np.count_nonzero(finite))
    return HalfLoss(
        overflowed=int(np.count_nonzero(finite >= fmt.overflows_from)),
        vanished=int(np.count_nonzero(finite <= fmt.smallest_subnormal / 2)) - zeros,
        subnormal=int(np.count_nonzero(finite < fmt.smallest_normal)) - zeros,
        largest=float(finite.max(initial=0.0)),
    )


_PIECE = 1 << 20
"""Elements per piece, few enough for the temporary arrays to stay in a processor's cache."""
