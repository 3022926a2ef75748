"""The certificate of a rescaling: the tensors, constants and numbers that are 2^e times the original's.

It lies in a bundle as `rescale.json`. Like all files there it is untrusted: parsed strictly, and true only as far as
`checker` finds it so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from demi.errors import BundleError

SCHEMA = 1
"""The number of the certificate's file format."""

Exponent = Annotated[int, Meta(ge=-252, le=252)]
"""A power of two that float32 may be multiplied by: from the smallest normal number to the largest, at the most."""


@dataclass(frozen=True, slots=True)
class Channels:
    """Exponents that differ by channel: an array of whole numbers that broadcasts with the tensor, as in ONNX."""

    shape: tuple[Annotated[int, Meta(ge=1)], ...]
    exponents: tuple[Exponent, ...]
    """In row-major order."""

    def __post_init__(self) -> None:
        """Raise ValueError where the numbers do not fill the shape."""
        if len(self.exponents) != math.prod(self.shape):
            raise ValueError(f"{len(self.exponents)} exponents do not fill the shape {list(self.shape)}")

    def __str__(self) -> str:
        return f"{min(self.exponents)}..{max(self.exponents)}"


Powers = Exponent | Channels
"""The exponent of a tensor, or one for each of its channels."""


def as_array(powers: Powers) -> NDArray[np.int64]:
    """Return exponents as an array that broadcasts with the tensor."""
    if isinstance(powers, Channels):
        return np.array(powers.exponents, np.int64).reshape(powers.shape)
    return np.array(powers, np.int64)


def as_powers(exponents: NDArray[np.int64]) -> Powers:
    """Return an array of exponents as one number where they are all the same, else by channel."""
    numbers = tuple(exponents.ravel().tolist())
    return numbers[0] if len(set(numbers)) == 1 else Channels(exponents.shape, numbers)


@dataclass(frozen=True, slots=True)
class ScaledConstant:
    """A constant of the rescaled model: 2^exponent times one of the original."""

    name: str
    source: str
    """Its name in the original; empty for a power of two that multiplies a tensor on its way."""
    exponent: Powers


@dataclass(frozen=True, slots=True)
class ScaledNumber:
    """A number in an attribute, such as an epsilon: 2^exponent times the original."""

    node: str
    attribute: str
    original: float
    exponent: Exponent


@dataclass(frozen=True, slots=True)
class Islands:
    """Nodes that stay in FP32 for their range before rescaling, by the rules of the planner."""

    nodes: int
    tensor_bytes: float
    """Bytes of float32 operands of those nodes, over one set of samples."""
    flops: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """All changes, and the exponent of every tensor: with the models, all that the checker needs."""

    tensors: dict[str, Powers] = field(default_factory=dict)
    """Exponents other than 0 of nodes' outputs, by name."""
    constants: tuple[ScaledConstant, ...] = ()
    numbers: tuple[ScaledNumber, ...] = ()
    before: Islands = Islands(0, 0.0, 0.0)
    after: Islands = Islands(0, 0.0, 0.0)
    samples: int = 0
    """Sets of inputs on which both FP32 models gave bit-identical outputs."""

    def to_json(self) -> bytes:
        """Return the file's bytes."""
        document = {"schema": SCHEMA, "certificate": self}
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    certificate: Certificate


def read_certificate(path: Path) -> Certificate:
    """Read a certificate from its file. Raises BundleError if it is not valid."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"the certificate of the rescaling cannot be read: {error}",
            where=str(path),
            hint="export the model again",
        ) from error
    if document.schema != SCHEMA:
        raise BundleError(
            f"the certificate of the rescaling has schema {document.schema}; this Demi reads schema {SCHEMA}",
            where=str(path),
            hint="export the model again, or use the version of Demi that wrote it",
        )
    return document.certificate
