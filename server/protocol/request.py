"""An infer request once it is understood, and the checks that are the same over HTTP and gRPC.

Past `read_inputs` every tensor has the name, datatype and shape that the model declares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from demi.server.errors import RequestError
from demi.server.protocol.answer import Wish
from demi.server.protocol.classification import classify
from demi.server.protocol.float_widths import as_declared
from demi.server.protocol.parameters import read_parameters, switch, whole_number
from demi.server.protocol.schemas import InferInput, InferOutput
from demi.server.protocol.shared_memory import Place, SharedMemory
from demi.server.protocol.signature import Signature
from demi.tensors import Array, DType, Feeds, TensorSpec, check_feeds

_DTYPES = {dtype.value: dtype for dtype in DType}
_LARGEST = 2**48
"""More elements than any tensor here has: beyond it not even an empty array can be shaped."""
_MOST_AXES = 64
"""NumPy has no more, and the product of a million large dimensions takes minutes."""

ReadData = Callable[[InferInput, DType, tuple[int, ...]], Array]
"""Where an input's elements come from: the array of that datatype and shape, wherever the request carries it."""


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """One output someone asked for: as binary or JSON, as it is (`classes` 0) or as its largest elements.

    Where `place` is given it goes into shared memory, and only its shape into the answer.
    """

    name: str
    binary: bool
    classes: int = 0
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A checked infer request. `timeout_us` is None where the caller did not say, and `wish` the precision asked for."""

    feeds: Feeds
    outputs: tuple[OutputRequest, ...]
    id: str = ""
    timeout_us: int | None = None
    wish: Wish = "auto"

    @property
    def output_names(self) -> list[str]:
        """The outputs to compute."""
        return [output.name for output in self.outputs]


def read_inputs(inputs: Iterable[InferInput], read_data: ReadData, signature: Signature) -> Feeds:
    """The inputs of a request, each checked before its elements are looked at.

    Raises RequestError or TensorError, naming the tensor.
    """
    feeds: Feeds = {}
    for given in inputs:
        spec = signature.input(given.name)
        if given.name in feeds:
            raise RequestError(f"input `{given.name}` is given twice")
        dtype = _read_dtype(given)
        shape = _read_shape(given)
        signature.check_input_shape(spec, shape)
        feeds[given.name] = as_declared(read_data(given, dtype, shape), dtype, spec)
    return check_feeds(signature.inputs, feeds)


def read_outputs(
    outputs: Iterable[InferOutput], signature: Signature, memory: SharedMemory, *, binary: bool
) -> tuple[OutputRequest, ...]:
    """The outputs that a request asks for, all of them where it names none; `binary` where an output does not say.

    Raises RequestError or TensorError, naming the tensor.
    """
    wanted = [_read_output(output, signature, memory, binary) for output in outputs]
    names = [output.name for output in wanted]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"output `{twice}` is asked for twice")
    return tuple(wanted) or tuple(OutputRequest(spec.name, binary) for spec in signature.outputs)


def shown(wanted: OutputRequest, values: Array, signature: Signature) -> tuple[TensorSpec, Array]:
    """An output as it was asked for: as it is, or as its largest elements."""
    spec = signature.output(wanted.name)
    if not wanted.classes:
        return spec, values
    labels = classify(values, spec, wanted.classes, rows=signature.has_rows)
    return TensorSpec(spec.name, DType.BYTES, labels.shape), labels


def _read_dtype(given: InferInput) -> DType:
    dtype = _DTYPES.get(given.datatype) if isinstance(given.datatype, str) else None
    if dtype is None:
        raise RequestError(
            f"input `{given.name}` has an unknown or missing datatype", hint="use one of " + ", ".join(_DTYPES)
        )
    return dtype


def _read_shape(given: InferInput) -> tuple[int, ...]:
    shape = given.shape
    if not isinstance(shape, list) or any(type(dim) is not int or dim < 0 for dim in shape):
        raise RequestError(f"input `{given.name}` needs a shape: a list of whole numbers, zero or more")
    if len(shape) > _MOST_AXES or math.prod(max(dim, 1) for dim in shape) > _LARGEST:
        raise RequestError(f"the shape of input `{given.name}` is too large")
    return tuple(shape)


def _read_output(output: InferOutput, signature: Signature, memory: SharedMemory, binary: bool) -> OutputRequest:
    owner = f"output `{output.name}`"
    signature.output(output.name)
    parameters = read_parameters(output.parameters, owner)
    classes = whole_number(parameters, "classification", owner) or 0
    binary = switch(parameters, "binary_data", owner, binary)
    place = memory.place(parameters, owner)
    return OutputRequest(output.name, binary and place is None, classes, place)
