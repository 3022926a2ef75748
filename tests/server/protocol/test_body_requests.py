"""JSON, binary and raw bodies that `read_request` parses, and those it refuses."""

from __future__ import annotations

import struct

import numpy as np
import orjson
import pytest

from demi.errors import InputError
from demi.float16 import BF16, to_half
from demi.server.protocol.body import read_request
from demi.server.protocol.request import OutputRequest
from demi.tensors import DType
from tests.server.fakes import binary_message, message, signature_of

ROWS = signature_of("x:fp32[batch,3]", rows=4)
FREE = signature_of("x:fp32[n]", outputs=["y:fp32[n]", "z:fp32[n]"])


def refused(body: bytes, header_length: str | None = None, signature=FREE) -> str:
    """Return the error message for a body."""
    with pytest.raises(InputError) as caught:
        read_request(body, header_length, signature)
    return str(caught.value)


def test_flat_json():
    """Flat data is reshaped to the shape in the request."""
    request = read_request(message([1, 2.5, 3, 4, 5, 6], shape=[2, 3]), None, ROWS)

    assert [[1, 2.5, 3], [4, 5, 6]] == request.feeds["x"].tolist()
    assert np.float32 == request.feeds["x"].dtype


def test_nested_json():
    """Nested data equals flat data."""
    nested = read_request(message([[1, 2, 3], [4, 5, 6]], shape=[2, 3]), None, ROWS)
    flat = read_request(message([1, 2, 3, 4, 5, 6], shape=[2, 3]), None, ROWS)

    assert flat.feeds["x"].tolist() == nested.feeds["x"].tolist()


def test_a_header_length_of_the_whole_body_is_plain_json():
    """perf_analyzer sends the header with JSON bodies too."""
    body = message([1, 2], shape=[2])

    assert [1, 2] == read_request(body, str(len(body)), FREE).feeds["x"].tolist()


def test_binary_inputs_follow_the_header_in_order():
    """Two binary inputs follow in the order of the JSON."""
    signature = signature_of("a:fp32[n]", "b:int8[3]")
    a, b = np.array([1.5, -2], np.float32), np.array([1, 2, -3], np.int8)
    body, length = binary_message(("b", DType.INT8, [3], b.tobytes()), ("a", DType.FP32, [2], a.tobytes()))

    feeds = read_request(body, length, signature).feeds

    assert a.tolist() == feeds["a"].tolist()
    assert b.tolist() == feeds["b"].tolist()


@pytest.mark.parametrize("padding", range(4))
def test_binary_tensors_may_be_unaligned(padding):
    """Unaligned arrays are read without a copy."""
    data = np.arange(4, dtype=np.float64)
    body, length = binary_message(("x", DType.FP64, [4], data.tobytes()), id="i" * padding)
    array = read_request(body, length, signature_of("x:fp64[n]")).feeds["x"]

    assert not array.flags.owndata
    assert data.tolist() == array.tolist()


def test_raw_body():
    """With a header length of 0 the body is one row of the only input, and outputs are binary."""
    request = read_request(np.array([1, 2, 3], np.float32).tobytes(), "0", ROWS)

    assert [[1, 2, 3]] == request.feeds["x"].tolist()
    assert (OutputRequest("y", binary=True),) == request.outputs


@pytest.mark.parametrize(
    ("signature", "count", "shape"),
    [
        (ROWS, 6, (2, 3)),
        (ROWS, 15, (5, 3)),
        (ROWS, 0, (0, 3)),
        (signature_of("x:fp32[2,3]"), 6, (2, 3)),
        (signature_of("x:fp32[2,n]"), 6, (2, 3)),
        (signature_of("x:fp32[n]", outputs=["y:fp32[]"]), 6, (6,)),
        (signature_of("x:fp32[]", outputs=["y:fp32[]"]), 1, ()),
        (signature_of("x:fp32[batch,n]", outputs=["y:fp32[batch,n]"], rows=4), 6, (1, 6)),
        (signature_of("x:fp32[batch,n]", outputs=["y:fp32[batch,n]"]), 6, (1, 6)),
        (signature_of("x:fp32[batch,2,n]", outputs=["y:fp32[batch,2]"]), 6, (1, 2, 3)),
    ],
)
def test_the_shape_of_a_raw_body(signature, count, shape):
    """One dynamic axis follows from the number of bytes; with another besides the rows, there is one row."""
    body = np.arange(count, dtype=np.float32).tobytes()

    assert shape == read_request(body, "0", signature).feeds["x"].shape


def test_raw_bytes_are_one_element():
    """A raw body for a BYTES input is one string without a length."""
    request = read_request("grün".encode(), "0", signature_of("x:BYTES[batch,1]", rows=4))

    assert [["grün"]] == request.feeds["x"].tolist()


@pytest.mark.parametrize(
    ("signature", "body", "words"),
    [
        (signature_of("a:fp32[2]", "b:fp32[2]"), b"", "a model with one input"),
        (signature_of("x:fp32[batch,n,m]", rows=4), bytes(24), "does not determine the shape of input `x"),
        (signature_of("x:fp32[a,b]", outputs=["y:fp32[c]"]), bytes(24), "does not determine the shape of input `x"),
        (ROWS, b"1234", "needs a multiple of 12 bytes, but has 4"),
        (signature_of("x:fp32[2,3]"), bytes(20), "has 20 bytes, but FP32 of shape [2, 3] needs 24"),
        (signature_of("x:BYTES[2]"), b"ab", "one BYTES element"),
    ],
)
def test_invalid_raw_bodies(signature, body, words):
    """A raw body needs one input whose shape follows from its bytes and fits the model."""
    assert words in refused(body, "0", signature)


@pytest.mark.parametrize("dtype", ["FP16", "BF16", "FP32", "FP64"])
def test_a_float_input_takes_every_float_width(dtype):
    """Each of the four float types is accepted for each other, as JSON and as bytes."""
    sent = DType(dtype)
    values = np.array([0.5, -2.0], np.float32)
    data = to_half(values, BF16) if sent is DType.BF16 else values.astype(sent.numpy)
    for wanted in ("fp16", "bf16", "fp32", "fp64"):
        signature = signature_of(f"x:{wanted}[n]")
        body, length = binary_message(("x", sent, [2], data.tobytes()))
        for request in (
            read_request(body, length, signature),
            read_request(message([0.5, -2.0], shape=[2], datatype=dtype), None, signature),
        ):
            expected = to_half(values, BF16) if wanted == "bf16" else values
            assert expected.tolist() == request.feeds["x"].tolist()
            assert DType.parse(wanted).numpy == request.feeds["x"].dtype


@pytest.mark.parametrize(
    ("wanted", "datatype", "value"),
    [("fp16", "FP32", 70000.0), ("fp16", "FP16", 70000.0), ("fp32", "FP64", 1e39), ("bf16", "FP64", 3.4e38)],
)
def test_a_finite_value_never_becomes_an_infinity(wanted, datatype, value):
    """A number out of the range of the input's dtype is refused."""
    text = refused(message([value], shape=[1], datatype=datatype), None, signature_of(f"x:{wanted}[n]"))

    assert "input `x`" in text
    assert "out of range for" in text


def test_infinities_stay_infinities():
    """An infinity in a request is passed to the model."""
    body = b'{"inputs":[{"name":"x","shape":[3],"datatype":"FP32","data":[-Infinity,NaN,Infinity]}]}'
    values = read_request(body, None, signature_of("x:fp16[n]")).feeds["x"]

    assert -np.inf == values[0]
    assert np.isnan(values[1])
    assert np.inf == values[2]


def test_numbers_out_of_range_are_refused_beside_nan():
    """The lenient parser for NaN does not turn 1e999 into an infinity."""
    body = b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP64","data":[NaN,1e999]}]}'

    assert "out of range" in refused(body, None, signature_of("x:fp64[n]"))


def test_integers_stay_exact():
    """INT64 and UINT64 are exact beyond 2^53."""
    for dtype, value in (("INT64", -(2**63)), ("INT64", 2**53 + 1), ("UINT64", 2**64 - 1)):
        request = read_request(message([value], shape=[1], datatype=dtype), None, signature_of(f"x:{dtype}[n]"))
        assert [value] == request.feeds["x"].tolist()


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("INT8", [128]),
        ("UINT64", [-1]),
        ("INT64", [2**63]),
        ("INT32", [1.0]),
        ("INT32", [1.5]),
        ("INT32", [True]),
        ("INT32", ["1"]),
        ("INT32", [None]),
        ("FP32", [None]),
        ("FP32", ["1.5"]),
        ("FP32", [True]),
        ("FP32", [{}]),
        ("BOOL", [1]),
        ("BOOL", ["true"]),
        ("BYTES", [1]),
        ("BYTES", [None]),
        ("FP32", 1.5),
        ("FP32", {"0": 1.5}),
        ("FP32", "1.5"),
        ("FP32", None),
    ],
)
def test_values_that_are_not_of_the_datatype(datatype, data):
    """Values of another type, or out of the range of an integer type, are refused, naming the tensor."""
    assert "input `x`" in refused(message(data, shape=[1], datatype=datatype), None, signature_of(f"x:{datatype}[n]"))


def test_an_integer_too_large_for_any_type():
    """Integers beyond 64 bits are an error, not rounded."""
    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"UINT64","data":[18446744073709551616]}]}'

    assert "out of range for UINT64" in refused(body, None, signature_of("x:UINT64[n]"))


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ([1, 2], [3]),
        ([1, 2, 3, 4], [3]),
        ([], [3]),
        ([1], [10**15]),
        ([[1, 2], [3]], [2, 2]),
        ([[1, 2], 3], [2, 2]),
        ([[1, 2], [3, [4]]], [2, 2]),
        ([[1, 2, 3, 4]], [2, 2]),
        ([1, [2]], [2]),
        ([[1, 2]], [2]),
    ],
)
def test_data_that_does_not_fill_the_shape(data, shape):
    """Too few, too many or unevenly nested elements are refused before memory is allocated."""
    free = signature_of("x:fp32[" + ",".join("abc"[: len(shape)]) + "]")

    assert "input `x`" in refused(message(data, shape=shape), None, free)


@pytest.mark.parametrize("shape", [None, 3, "3", [-1], [1.0], [True], [None], ["3"], {}, [[3]], [2**62], [0, 2**62]])
def test_invalid_shapes(shape):
    """A missing, negative, huge or malformed shape is refused, naming the tensor."""
    entry = {"name": "x", "datatype": "FP32", "shape": shape, "data": []}
    signature = signature_of("x:fp32[a,b]") if isinstance(shape, list) and len(shape) == 2 else FREE

    assert "input `x`" in refused(orjson.dumps({"inputs": [entry]}), None, signature)


@pytest.mark.parametrize("datatype", [None, 3, "", "fp32", "FLOAT", [], {}])
def test_invalid_datatypes(datatype):
    """A missing or unknown datatype is refused, naming the tensor."""
    entry = {"name": "x", "shape": [1], "datatype": datatype, "data": [1]}

    assert "input `x` has an unknown or missing datatype" in refused(orjson.dumps({"inputs": [entry]}))


def test_a_datatype_the_model_does_not_take():
    """Integers for a float input are refused, even if they would fit."""
    assert "datatype INT32, expected FP32" in refused(message([1], shape=[1], datatype="INT32"))


@pytest.mark.parametrize(
    ("shape", "words"),
    [([3], "expected [batch, 3]"), ([1, 4], "expected [batch, 3]")],
)
def test_shapes_that_do_not_fit_the_model(shape, words):
    """A wrong rank or dimension is refused with the expected and the actual shape."""
    text = refused(message([0] * int(np.prod(shape)), shape=shape), None, ROWS)

    assert words in text
    assert str(shape[0]) in text


def test_more_rows_than_one_run_takes():
    """More rows than one run takes are accepted, but not rows without elements."""
    assert (5, 3) == read_request(message([0] * 15, shape=[5, 3]), None, ROWS).feeds["x"].shape
    empty = signature_of("x:fp32[batch,n]", outputs=["y:fp32[batch,n]"], rows=4)
    apart = signature_of("x:fp32[batch,3]", rows=0)

    assert "has 5 rows, expected at most 4" in refused(message([], shape=[5, 0]), None, empty)
    assert (500, 3) == read_request(message([0] * 1500, shape=[500, 3]), None, apart).feeds["x"].shape


def test_free_axes_must_agree():
    """Two inputs that share a dynamic axis need the same size along it."""
    inputs = [{"name": name, "shape": [n], "datatype": "FP32", "data": [0] * n} for name, n in (("a", 1), ("b", 2))]

    assert "axis `n`" in refused(orjson.dumps({"inputs": inputs}), None, signature_of("a:fp32[n]", "b:fp32[n]"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b"3",
        b"{}",
        b'{"inputs":null}',
        b'{"inputs":{}}',
        b'{"inputs":[3]}',
        b'{"inputs":[{}]}',
        b'{"inputs":[{"name":3}]}',
        b'{"inputs":[],"outputs":3}',
        b'{"inputs":[],"id":3}',
        b'{"inputs":[]} x',
        b'{"inputs":[],"id":"\xff"}',
        b'{"inputs":[],"id":NaN}',
        b'{"inputs":' + b"[" * 100_000,
        b'{"inputs":[{"name":"x","data":' + b"[" * 100_000,
        b'{"inputs":[{"name":"x","data":[NaN,' + b"[" * 100_000,
        b'{"inputs":[],"id":"NaN\\ud800"',
    ],
    ids=lambda body: body[:24].decode("latin-1") or "empty",
)
def test_bodies_that_are_not_requests(body):
    """Bodies that are not JSON, or do not follow the protocol, are refused."""
    assert "the request " in refused(body)


def test_missing_unknown_and_duplicate_inputs():
    """Inputs must be exactly those of the model, each once."""
    entry = orjson.loads(message([1], shape=[1]))["inputs"][0]

    assert "input `x` is missing" in refused(orjson.dumps({"inputs": []}))
    assert "unknown input `w`" in refused(orjson.dumps({"inputs": [entry | {"name": "w"}]}))
    assert "sent twice" in refused(orjson.dumps({"inputs": [entry, entry]}))


@pytest.mark.parametrize("length", ["-1", "999999", "x", "1.5", "", " 1", "+1", "\u0661", "1" * 30])
def test_invalid_header_lengths(length):
    """A header length that is negative, beyond the body or not a number is refused."""
    assert "Inference-Header-Content-Length" in refused(message([1], shape=[1]), length)


@pytest.mark.parametrize(
    ("size", "data", "words"),
    [
        (8, b"1234", "should have 8 bytes"),
        (4, b"12345678", "needs 8"),
        (8, b"123456789", "1 extra bytes"),
        (12, b"123456789012", "needs 8"),
        (-8, b"12345678", "binary_data_size"),
        ("8", b"12345678", "binary_data_size"),
        (True, b"12345678", "binary_data_size"),
    ],
)
def test_binary_sizes_that_do_not_fit(size, data, words):
    """The declared size, the actual bytes and the shape must match."""
    body, length = binary_message(("x", DType.FP32, [2], data), sizes=[size])

    assert words in refused(body, length)


def test_data_and_binary_size_exclude_each_other():
    """An input with both JSON data and a binary size, or with neither, is refused."""
    entry = {"name": "x", "shape": [1], "datatype": "FP32"}
    both = entry | {"data": [1], "parameters": {"binary_data_size": 4}}

    assert "both data and binary_data_size" in refused(orjson.dumps({"inputs": [both]}))
    assert "neither data nor binary_data_size" in refused(orjson.dumps({"inputs": [entry]}))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "too few for 2 elements"),
        (b"\1\0\0", "too few for 2 elements"),
        (struct.pack("<I", 5) + b"abcdef", "truncated in BYTES element 1"),
        (struct.pack("<I", 0) + struct.pack("<I", 5) + b"abc", "truncated in BYTES element 1"),
        (struct.pack("<I", 2**32 - 1) + bytes(8), "truncated in BYTES element 0"),
        (struct.pack("<I", 0) + struct.pack("<I", 1) + b"a!", "1 extra bytes"),
    ],
)
def test_binary_strings_that_do_not_add_up(data, words):
    """A BYTES tensor whose lengths exceed its bytes, or leave some over, is refused."""
    body, length = binary_message(("x", DType.BYTES, [2], data))

    assert words in refused(body, length, signature_of("x:BYTES[n]"))


def test_a_count_of_strings_that_the_body_cannot_hold():
    """A shape of a billion strings for four bytes allocates no memory."""
    body, length = binary_message(("x", DType.BYTES, [10**9], b"\0\0\0\0"))

    assert "too few for 1000000000 elements" in refused(body, length, signature_of("x:BYTES[n]"))


def test_text_that_is_not_utf8():
    """BYTES that are not UTF-8 are refused, naming the tensor."""
    body, length = binary_message(("x", DType.BYTES, [1], struct.pack("<I", 1) + b"\xff"))

    assert "input `x` holds bytes that are not UTF-8" in refused(body, length, signature_of("x:BYTES[n]"))


def test_booleans_are_zero_or_one():
    """A binary BOOL other than 0 or 1 is refused."""
    body, length = binary_message(("x", DType.BOOL, [2], b"\1\2"))

    assert "other than 0 and 1" in refused(body, length, signature_of("x:BOOL[n]"))


def test_outputs_default_to_all_as_json():
    """By default all outputs are returned as JSON."""
    request = read_request(message([1], shape=[1]), None, FREE)

    assert (OutputRequest("y", False), OutputRequest("z", False)) == request.outputs


def test_binary_data_output_and_its_exceptions():
    """The request's parameter makes outputs binary; an output's own parameter overrides it."""
    outputs = [{"name": "z"}, {"name": "y", "parameters": {"binary_data": False}}]
    body = message([1], shape=[1], parameters={"binary_data_output": True}, outputs=outputs)

    assert (OutputRequest("z", True), OutputRequest("y", False)) == read_request(body, None, FREE).outputs


def test_unknown_and_duplicate_outputs():
    """Unknown or duplicate outputs are refused, naming the output."""
    assert "unknown output `w`" in refused(message([1], shape=[1], outputs=[{"name": "w"}]))
    assert "output `y` is requested twice" in refused(message([1], shape=[1], outputs=[{"name": "y"}] * 2))


@pytest.mark.parametrize(
    "parameters",
    [
        3,
        [],
        "x",
        {"a": {}},
        {"a": []},
        {"a": None},
        {"binary_data_output": "yes"},
        {"binary_data_output": 1},
        {"timeout": -1},
        {"timeout": 1.5},
        {"timeout": "5"},
        {"timeout": True},
        {"precision": "fp8"},
        {"precision": 16},
    ],
)
def test_invalid_parameters(parameters):
    """Parameters must be strings, numbers or booleans, and known ones of their own type."""
    assert "of the request" in refused(message([1], shape=[1], parameters=parameters))


@pytest.mark.parametrize(
    "parameters", [{"a": {}}, {"binary_data": "yes"}, {"classification": -1}, {"classification": "3"}]
)
def test_invalid_output_parameters(parameters):
    """Parameters of an output are checked like those of the request."""
    text = refused(message([1], shape=[1], outputs=[{"name": "y", "parameters": parameters}]))

    assert "of output `y`" in text


def test_shared_memory_is_refused():
    """Shared memory is refused with a hint to send bytes instead."""
    entry = {"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"shared_memory_region": "r"}}

    assert "shared memory" in refused(orjson.dumps({"inputs": [entry]}))


def test_unknown_parameters_are_ignored():
    """Unknown parameters, and those without an effect here, are ignored."""
    parameters = {"priority": 1, "sequence_id": 0, "triton_enable_empty_final_response": True, "mine": "x"}
    request = read_request(message([1], shape=[1], parameters=parameters | {"timeout": 250}, id="a"), None, FREE)

    assert ("a", 250) == (request.id, request.timeout_us)


def test_null_members_count_as_absent():
    """A null member equals an absent one, since some clients write all members."""
    entry = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1], "parameters": None}
    body = orjson.dumps({"inputs": [entry], "outputs": None, "id": None, "parameters": None})

    assert "" == read_request(body, None, FREE).id


def test_scalars_and_empty_tensors():
    """A tensor of rank 0 has one element; one with a zero in its shape has none."""
    scalar = read_request(message([5], shape=[], datatype="INT64"), None, signature_of("x:INT64[]"))
    empty = read_request(message([[], []], shape=[2, 0]), None, signature_of("x:fp32[a,b]"))

    assert 5 == scalar.feeds["x"][()]
    assert (2, 0) == empty.feeds["x"].shape


def test_a_scalar_may_come_without_a_list():
    """The data of a tensor of rank 0 is a number, or a list of one; other types are refused."""
    signature = signature_of("x:INT64[]")

    assert 5 == read_request(message(5, shape=[], datatype="INT64"), None, signature).feeds["x"][()]
    assert "a number with a fraction" in refused(message(5.5, shape=[], datatype="INT64"), signature=signature)
    assert "null" in refused(message(None, shape=[], datatype="INT64"), signature=signature)
    assert "expected a list" in refused(message(5, shape=[1]))


@pytest.mark.parametrize(
    ("parameters", "precision"), [({}, "auto"), ({"precision": "half"}, "half"), ({"precision": "fp32"}, "fp32")]
)
def test_requested_precision(parameters, precision):
    """A request may choose its precision."""
    assert precision == read_request(message([1], shape=[1], parameters=parameters), None, FREE).precision


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "the request has no `inputs`"),
        (b'{"inputs":[{"shape":[1]}]}', "`inputs[0]` of the request has no `name`"),
        (
            b'{"inputs":[{"name":"x","shape":[1,1,8,8],"datatype":"FP32","data":[[[1]]]}]}',
            "is nested as [1, 1, 1], but its",
        ),
        (
            b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3]]}]}',
            "has 1 elements along axis 1",
        ),
    ],
)
def test_messages_are_in_the_words_of_the_protocol(body, words):
    """A missing member and another nesting are named as the client knows them."""
    assert words in refused(body, None, signature_of("x:fp32[a,b]" if b"[2,2]" in body else "x:fp32[a,b,c,d]"))
