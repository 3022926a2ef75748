"""Specs of a model's inputs and outputs, and checks whether arrays fit them.

A dtype has three names: the protocol's, which Demi uses (`FP16`), ONNX's element type number, and NumPy's dtype.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demi.axes import named
from demi.errors import InputError, TensorError

Array = NDArray[Any]
"""A NumPy array of any dtype."""

Feeds = dict[str, Array]
"""One set of model inputs (or outputs), by tensor name."""


class DType(Enum):
    """An element type, by its Open Inference Protocol name."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    BF16 = "BF16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    __hash__ = object.__hash__
    """By identity: Enum's own hashes the name, in Python, at every lookup in a table."""

    @property
    def numpy(self) -> np.dtype[Any]:
        """Return the NumPy dtype that holds it; BF16, which NumPy lacks, is held as bits in uint16."""
        return _NUMPY[self]

    @property
    def onnx(self) -> int:
        """Return the number in `onnx.TensorProto.DataType`."""
        return _ONNX[self]

    @property
    def is_float(self) -> bool:
        """Return whether it is a floating point type."""
        return self in _FLOATS

    @property
    def is_half(self) -> bool:
        """Return whether it is one of the two 16-bit floating point types."""
        return self in (DType.FP16, DType.BF16)

    @classmethod
    def from_onnx(cls, element_type: int) -> DType:
        """Return the dtype of an ONNX element type number. Raises TensorError for one that is not supported."""
        for dtype, number in _ONNX.items():
            if number == element_type:
                return dtype
        raise TensorError(f"ONNX element type {element_type} is not supported for model inputs and outputs")

    @classmethod
    def from_numpy(cls, dtype: np.dtype[Any]) -> DType:
        """Return the dtype of a NumPy array; uint16 is UINT16, never BF16. Raises TensorError for other dtypes."""
        if dtype.kind in "SUO":
            return cls.BYTES
        for ours, theirs in _NUMPY.items():
            if theirs == dtype and ours is not cls.BF16:
                return ours
        raise TensorError(f"arrays of dtype {dtype} are not supported for model inputs and outputs")

    @classmethod
    def parse(cls, text: str) -> DType:
        """Parse any common name of a dtype: `FP32`, `float32`, `float`, `tensor(float)`. Raises InputError."""
        key = text.strip().lower().removeprefix("tensor(").removesuffix(")")
        if key not in _ALIASES:
            raise InputError(f"unknown dtype `{text}`", hint="use one of " + ", ".join(sorted(_ALIASES)))
        return _ALIASES[key]


_FLOATS = frozenset({DType.FP16, DType.BF16, DType.FP32, DType.FP64})

_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.BOOL: np.dtype(np.bool_),
    DType.UINT8: np.dtype(np.uint8),
    DType.UINT16: np.dtype(np.uint16),
    DType.UINT32: np.dtype(np.uint32),
    DType.UINT64: np.dtype(np.uint64),
    DType.INT8: np.dtype(np.int8),
    DType.INT16: np.dtype(np.int16),
    DType.INT32: np.dtype(np.int32),
    DType.INT64: np.dtype(np.int64),
    DType.FP16: np.dtype(np.float16),
    DType.BF16: np.dtype(np.uint16),
    DType.FP32: np.dtype(np.float32),
    DType.FP64: np.dtype(np.float64),
    DType.BYTES: np.dtype(np.object_),
}

_ONNX: dict[DType, int] = {
    DType.FP32: 1,
    DType.UINT8: 2,
    DType.INT8: 3,
    DType.UINT16: 4,
    DType.INT16: 5,
    DType.INT32: 6,
    DType.INT64: 7,
    DType.BYTES: 8,
    DType.BOOL: 9,
    DType.FP16: 10,
    DType.FP64: 11,
    DType.UINT32: 12,
    DType.UINT64: 13,
    DType.BF16: 16,
}

_ALIASES: dict[str, DType] = {dtype.value.lower(): dtype for dtype in DType} | {
    "float": DType.FP32,
    "float32": DType.FP32,
    "float16": DType.FP16,
    "half": DType.FP16,
    "bfloat16": DType.BF16,
    "double": DType.FP64,
    "float64": DType.FP64,
    "string": DType.BYTES,
}

Dim = int | str
"""A dimension: its size, or the name of a free axis."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a model input or output; a free axis is given by name, as in `("batch", 384)`.

    Axes with a placeholder such as `?` or -1 get unique names, since nothing shows that they are equal.
    """

    name: str
    dtype: DType
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        dims = tuple(named(self.name, axis, dim) for axis, dim in enumerate(self.shape))
        object.__setattr__(self, "shape", dims)

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype.value}[{','.join(map(str, self.shape))}]"

    @property
    def wire_shape(self) -> list[int]:
        """Return the shape as the protocol writes it, with -1 for a free axis."""
        return [dim if isinstance(dim, int) else -1 for dim in self.shape]

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise TensorError unless an array of `shape` fits this spec."""
        wrong = [want for want, got in zip(self.shape, shape, strict=False) if isinstance(want, int) and want != got]
        if wrong or len(shape) != len(self.shape):
            raise TensorError(
                f"input `{self.name}` has shape {list(shape)}, expected [{', '.join(map(str, self.shape))}]"
            )


_SPEC = re.compile(r"(?P<name>[^:].*?)(:(?P<dtype>[A-Za-z][A-Za-z0-9]*))?\[(?P<dims>[^\[\]]*)\]")


def parse_spec(text: str) -> TensorSpec:
    """Parse `input_ids:int64[batch,seq]`; the dtype defaults to float32, and `?` is a free axis without a name.

    Names may hold colons and brackets, as in `x:0:float32[batch,4]`. Raises InputError for other forms.
    """
    match = _SPEC.fullmatch(text.strip())
    if not match:
        raise InputError(
            f"cannot read `{text}` as an input",
            hint="write it as name:dtype[dim,dim], e.g. x:float32[batch,784]",
        )
    dims = [part.strip() for part in match["dims"].split(",")] if match["dims"].strip() else []
    if any(not dim or (dim.lstrip("-").isdecimal() and int(dim) <= 0) for dim in dims):
        raise InputError(
            f"cannot read the shape of `{text}`", hint="dimensions are positive numbers or names of free axes"
        )
    dtype = DType.parse(match["dtype"]) if match["dtype"] else DType.FP32
    return TensorSpec(match["name"].strip(), dtype, tuple(int(dim) if dim.isdecimal() else dim for dim in dims))


def check_feeds(specs: Iterable[TensorSpec], feeds: Mapping[str, Array], *, cast_floats: bool = False) -> Feeds:
    """Check all feeds against the specs, and return them in the specs' dtypes.

    With `cast_floats`, float arrays of another width are cast to the declared float type; a finite value beyond the
    narrower type is an error, never an infinity. Free axes with the same name must have the same size. Raises
    TensorError, naming the first input that does not fit.
    """
    wanted = {spec.name: spec for spec in specs}
    unknown = [name for name in feeds if name not in wanted]
    missing = [name for name in wanted if name not in feeds]
    if unknown or missing:
        problem = f"unknown input `{unknown[0]}`" if unknown else f"input `{missing[0]}` is missing"
        raise TensorError(problem, hint="the model's inputs are " + ", ".join(map(str, wanted.values())))
    sizes: dict[str, tuple[int, str]] = {}
    result: Feeds = {}
    for name, spec in wanted.items():
        array = feeds[name]
        spec.check_shape(array.shape)
        _check_free_axes(spec, array.shape, sizes)
        result[name] = _as_dtype(spec, array, cast_floats)
    return result


def _check_free_axes(spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    for dim, size in zip(spec.shape, shape, strict=True):
        if isinstance(dim, str):
            first, owner = sizes.setdefault(dim, (size, spec.name))
            if first != size:
                raise TensorError(f"input `{spec.name}` has {size} for axis `{dim}`, but input `{owner}` has {first}")


def _as_dtype(spec: TensorSpec, array: Array, cast_floats: bool) -> Array:
    if array.dtype == spec.dtype.numpy:
        return array
    if spec.dtype is DType.BYTES and array.dtype.kind in "SUO":
        return array.astype(object)
    if not (cast_floats and spec.dtype.is_float and spec.dtype is not DType.BF16 and array.dtype.kind == "f"):
        raise TensorError(
            f"input `{spec.name}` has dtype {array.dtype}, expected {spec.dtype.value} ({spec.dtype.numpy})"
        )
    with np.errstate(over="ignore"):
        cast = array.astype(spec.dtype.numpy)
    if np.isinf(cast).any() and not np.array_equal(np.isinf(cast), np.isinf(array)):
        largest = float(np.max(np.abs(array[np.isfinite(array)])))
        raise TensorError(
            f"input `{spec.name}` holds {largest:g}, which is beyond the range of {spec.dtype.value}",
            hint="send values within the range of the input's dtype, or serve a bundle with FP32 inputs",
        )
    return cast
