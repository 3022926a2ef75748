"""Round trips of tensors, and errors for arbitrary bodies."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from demi.errors import InputError
from demi.server.protocol.answer import Answer
from demi.server.protocol.body import read_request, write_answer
from demi.server.protocol.request import InferRequest, OutputRequest
from demi.tensors import DType
from tests.server.fakes import binary_message, message, signature_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def tensors(draw):
    """Generate any datatype with an array of any small shape."""
    dtype = draw(st.sampled_from(list(DType)))
    shape = draw(SHAPES)
    if dtype is DType.BYTES:
        values = np.empty(math.prod(shape), object)
        values[:] = draw(st.lists(TEXT, min_size=values.size, max_size=values.size))
        return dtype, values.reshape(shape)
    return dtype, draw(arrays.arrays(dtype.numpy, shape))


def signature_for(dtype: DType, rank: int):
    """Return a signature with an input and an output of `dtype` and `rank` dynamic axes."""
    axes = ",".join("abc"[:rank])
    return signature_of(f"x:{dtype.value}[{axes}]", outputs=[f"x:{dtype.value}[{axes}]"])


def written(dtype: DType, values, *, binary: bool):
    """Return an answer with the output `values`, as (JSON, bytes after it)."""
    request = InferRequest({}, (OutputRequest("x", binary),))
    answer = write_answer("m", "1", request, Answer({"x": values}, "fp16"), signature_for(dtype, values.ndim), "null")
    length = answer.header_length or len(answer.body)
    return orjson.loads(answer.body[:length])["outputs"][0], answer.body[length:]


@settings(deadline=None, max_examples=200)
@given(tensors())
def test_binary_round_trip(tensor):
    """Binary tensors round-trip bit by bit, for all datatypes and shapes."""
    dtype, values = tensor
    entry, data = written(dtype, values, binary=True)
    assert len(data) == entry["parameters"]["binary_data_size"]

    body, length = binary_message(("x", dtype, entry["shape"], data))
    back = read_request(body, length, signature_for(dtype, values.ndim)).feeds["x"]

    assert values.shape == back.shape
    assert dtype.numpy == back.dtype
    assert values.tolist() == back.tolist() if dtype is DType.BYTES else values.tobytes() == back.tobytes()


@settings(deadline=None, max_examples=200)
@given(tensors())
def test_json_round_trip(tensor):
    """JSON tensors round-trip exactly, except that non-finite values become null."""
    dtype, values = tensor
    entry, _ = written(dtype, values, binary=False)
    if None in entry["data"]:
        assert dtype.is_float
        return

    body = message(entry["data"], shape=entry["shape"], datatype=dtype.value)
    back = read_request(body, None, signature_for(dtype, values.ndim)).feeds["x"]

    assert values.shape == back.shape
    assert values.tolist() == back.tolist() if dtype is DType.BYTES else values.tobytes() == back.tobytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
LENGTHS = st.none() | st.integers(-2, 300).map(str) | TEXT
MEMBERS = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "y"]) | JSON},
    optional={
        "shape": st.lists(st.integers(-1, 2**40), max_size=3) | JSON,
        "datatype": st.sampled_from([dtype.value for dtype in DType]) | JSON,
        "data": JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "classification"]), JSON) | JSON,
    },
)
MESSAGES = st.fixed_dictionaries(
    {"inputs": st.lists(MEMBERS, max_size=2) | JSON},
    optional={"outputs": st.lists(MEMBERS, max_size=2) | JSON, "id": JSON, "parameters": JSON},
)
SIGNATURES = st.tuples(st.sampled_from(list(DType)), st.integers(0, 3)).map(lambda pair: signature_for(*pair))


@settings(deadline=None, max_examples=300)
@given(MESSAGES | JSON, st.binary(max_size=40), LENGTHS, SIGNATURES)
def test_nothing_but_our_errors(request, tail, length, signature):
    """Malformed headers, lengths, shapes and datatypes are accepted or raise InputError, nothing else."""
    head = orjson.dumps(request)
    for body, header in ((head + tail, length), (head + tail, str(len(head))), (head, None), (tail, "0")):
        with contextlib.suppress(InputError):
            read_request(body, header, signature)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), LENGTHS)
def test_nothing_but_our_errors_for_any_bytes(body, length):
    """Arbitrary bytes are a request or raise InputError."""
    with contextlib.suppress(InputError):
        read_request(body, length, signature_for(DType.FP32, 1))
