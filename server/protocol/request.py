"""A parsed infer request, and the checks that HTTP and gRPC share.

The tensors that `read_inputs` returns have the names, datatypes and shapes that the model declares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import msgspec

from demi.processing.prepared import USUAL, AnswerOptions, RawRows
from demi.server.errors import RequestError
from demi.server.protocol.answer import RequestedPrecision
from demi.server.protocol.classification import classify
from demi.server.protocol.float_widths import as_declared
from demi.server.protocol.parameters import read_bool, read_count, read_parameters
from demi.server.protocol.schemas import InferInput, InferOutput
from demi.server.protocol.shared_memory import RegionSlice, SharedMemory
from demi.server.protocol.signature import Signature
from demi.tensors import Array, DType, Feeds, TensorSpec, check_feeds

_DTYPES = {dtype.value: dtype for dtype in DType}
_MAX_ELEMENTS = 2**48
"""More than any real tensor has; NumPy cannot shape even an empty array far beyond it."""
_MAX_AXES = 64
"""NumPy's limit; also, the product of a million large dimensions would take minutes."""

MOST_RAW_ROWS = 2048
"""Most texts, images or sounds of one request: each costs more than its bytes."""

ReadData = Callable[[InferInput, DType, tuple[int, ...], bool], Array]
"""Returns the elements of an input as an array of this datatype and shape, from wherever the request carries them; the last
argument is True if BYTES are the contents of files rather than text."""


class OutputRequest(msgspec.Struct, frozen=True):
    """A requested output: binary or JSON, whole (`classes` 0) or only its largest elements.

    With a `region`, the values are written to shared memory, and the answer contains only the shape.
    """

    name: str
    binary: bool
    classes: int = 0
    region: RegionSlice | None = None


class InferRequest(msgspec.Struct, frozen=True):
    """A checked infer request; `timeout_us` is None if the request does not set a timeout."""

    feeds: Feeds
    outputs: tuple[OutputRequest, ...]
    id: str = ""
    timeout_us: int | None = None
    precision: RequestedPrecision = "auto"
    raw: RawRows | None = None
    """Texts, images or sounds in the place of `feeds`."""
    answer_options: AnswerOptions = USUAL

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs to compute."""
        return [output.name for output in self.outputs]

    def with_feeds(self, feeds: Feeds) -> InferRequest:
        """Return a request for tensors as a cache keeps it: with these inputs, without an id, and otherwise the same."""
        return InferRequest(feeds, self.outputs, "", self.timeout_us, self.precision)


def read_inputs(inputs: Iterable[InferInput], read_data: ReadData, signature: Signature) -> Feeds:
    """Read the inputs of a request; name, datatype and shape of each are checked before its elements are read.

    Raises RequestError or TensorError, naming the tensor.
    """
    feeds: Feeds = {}
    for given in inputs:
        spec = signature.input(given.name)
        if given.name in feeds:
            raise RequestError(f"input `{given.name}` is sent twice")
        dtype = read_dtype(given)
        shape = read_shape(given)
        signature.check_input_shape(spec, shape)
        is_file = signature.is_file(given.name)
        if signature.is_raw(given.name) and shape[0] > MOST_RAW_ROWS:
            raise RequestError(f"input `{given.name}` has {shape[0]} rows, at most {MOST_RAW_ROWS} are taken")
        feeds[given.name] = as_declared(read_data(given, dtype, shape, is_file), dtype, spec)
    return check_feeds(_specs_for(feeds, signature), feeds)


def _specs_for(feeds: Feeds, signature: Signature) -> tuple[TensorSpec, ...]:
    """Return the inputs that a request must have: the raw ones if it has one of them. RequestError for a mixture."""
    raw = [name for name in feeds if signature.is_raw(name)]
    if raw and len(raw) < len(feeds):
        other = next(name for name in feeds if name not in raw)
        raise RequestError(
            f"the request has `{raw[0]}`, and `{other}`, which is made of it", hint="send either raw inputs or tensors"
        )
    return signature.raw if raw else signature.inputs


def raw_rows(feeds: Feeds, signature: Signature, *, truncate: bool) -> RawRows | None:
    """Return the raw inputs of a request as rows; None if it has tensors."""
    if not signature.raw or signature.raw[0].name not in feeds:
        return None
    columns = [tuple(feeds[spec.name].tolist()) for spec in signature.raw]
    return RawRows(columns[0], columns[1] if len(columns) > 1 else (), truncate)


def read_outputs(
    outputs: Iterable[InferOutput], signature: Signature, memory: SharedMemory, *, binary: bool, raw: bool = False
) -> tuple[OutputRequest, ...]:
    """Read the requested outputs, by default all, and for `raw` inputs the answers; `binary` is the default form of each.

    Raises RequestError or TensorError, naming the tensor.
    """
    wanted = [_read_output(output, signature, memory, binary) for output in outputs]
    names = [output.name for output in wanted]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"output `{twice}` is requested twice")
    usual = signature.answers if raw and signature.answers else signature.outputs
    return tuple(wanted) or tuple(OutputRequest(spec.name, binary) for spec in usual)


def render_output(wanted: OutputRequest, values: Array, signature: Signature) -> tuple[TensorSpec, Array]:
    """Return an output as requested: whole, or its largest elements."""
    spec = signature.output(wanted.name)
    if not wanted.classes:
        return spec, values
    labels = classify(values, spec, wanted.classes, rows=signature.has_rows)
    return TensorSpec(spec.name, DType.BYTES, labels.shape), labels


def read_dtype(given: InferInput) -> DType:
    dtype = _DTYPES.get(given.datatype) if isinstance(given.datatype, str) else None
    if dtype is None:
        raise RequestError(
            f"input `{given.name}` has an unknown or missing datatype", hint="use one of " + ", ".join(_DTYPES)
        )
    return dtype


def read_shape(given: InferInput) -> tuple[int, ...]:
    shape = given.shape
    if not isinstance(shape, list) or [dim for dim in shape if type(dim) is not int or dim < 0]:
        raise RequestError(f"input `{given.name}` needs a shape: a list of whole numbers, zero or more")
    if len(shape) > _MAX_AXES or math.prod([max(dim, 1) for dim in shape]) > _MAX_ELEMENTS:
        raise RequestError(f"the shape of input `{given.name}` is too large")
    return tuple(shape)


def _read_output(output: InferOutput, signature: Signature, memory: SharedMemory, binary: bool) -> OutputRequest:
    owner = f"output `{output.name}`"
    signature.output(output.name)
    parameters = read_parameters(output.parameters, owner)
    classes = read_count(parameters, "classification", owner) or 0
    binary = read_bool(parameters, "binary_data", owner, binary)
    region = memory.slice(parameters, owner)
    return OutputRequest(output.name, binary and region is None, classes, region)
