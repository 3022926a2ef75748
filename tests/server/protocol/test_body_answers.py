"""Answers that `write_answer` encodes, for each kind of output."""

from __future__ import annotations

import struct

import numpy as np
import orjson
import pytest

from demi.float16 import BF16, to_half
from demi.server.errors import RequestError
from demi.server.protocol.answer import Answer
from demi.server.protocol.body import write_answer
from demi.server.protocol.request import InferRequest, OutputRequest
from tests.server.fakes import signature_of


def answer(spec: str, values, *, binary=False, classes=0, rows=0, non_finite="null", request_id=""):
    """Return the answer of a model `m` with one output `y`, as (JSON, bytes after it)."""
    signature = signature_of("x:fp32[n]", outputs=[spec], rows=rows)
    request = InferRequest({}, (OutputRequest("y", binary, classes),), request_id)
    written = write_answer("m", "7", request, Answer({"y": values}, "fp16"), signature, non_finite)
    length = len(written.body) if written.header_length is None else written.header_length
    return orjson.loads(written.body[:length]), written.body[length:]


def test_a_json_answer():
    """A JSON output is flat, has its shape, and no `parameters`, which C++ clients take for binary data."""
    head, tail = answer("y:fp32[a,b]", np.array([[1.5, 0.1]], np.float32))

    assert {
        "model_name": "m",
        "model_version": "7",
        "parameters": {"precision": "fp16"},
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 0.1]}],
    } == head
    assert b"" == tail


def test_id_is_returned():
    """The answer contains the id of the request."""
    assert "abc" == answer("y:fp32[n]", np.zeros(1, np.float32), request_id="abc")[0]["id"]


def test_a_binary_answer():
    """A binary output follows the JSON, which contains its size."""
    values = np.array([1.5, -2], np.float16)
    head, tail = answer("y:fp16[n]", values, binary=True)

    assert {"binary_data_size": 4} == head["outputs"][0]["parameters"]
    assert "data" not in head["outputs"][0]
    assert values.tobytes() == tail


def test_binary_and_json_in_one_answer():
    """Only the binary outputs follow the JSON, in their order."""
    signature = signature_of("x:fp32[n]", outputs=["y:int8[n]", "z:int8[n]", "w:int8[n]"])
    request = InferRequest({}, (OutputRequest("w", True), OutputRequest("y", False), OutputRequest("z", True)))
    values = {name: np.array([ord(name)], np.int8) for name in "wyz"}

    written = write_answer("m", "1", request, Answer(values, "fp16"), signature, "null")

    assert b"wz" == written.body[written.header_length :]
    assert [ord("y")] == orjson.loads(written.body[: written.header_length])["outputs"][1]["data"]


@pytest.mark.parametrize(
    ("dtype", "values", "data"),
    [
        ("fp16", np.array([65504, 0.5], np.float16), [65504.0, 0.5]),
        ("bf16", to_half(np.array([1.5, -131072], np.float32), BF16), [1.5, -131072.0]),
        ("fp64", np.array([0.1]), [0.1]),
        ("int64", np.array([2**53 + 1, -(2**63)]), [2**53 + 1, -(2**63)]),
        ("uint64", np.array([2**64 - 1], np.uint64), [2**64 - 1]),
        ("bool", np.array([True, False]), [True, False]),
        ("bytes", np.array(["grün", b"blau"], object), ["grün", "blau"]),
    ],
)
def test_every_kind_of_json_output(dtype, values, data):
    """Numbers keep their digits, halves are ordinary numbers, text is text."""
    assert data == answer(f"y:{dtype}[n]", values)[0]["outputs"][0]["data"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
def test_non_finite_values_are_null_or_refused(dtype):
    """NaN and infinities never reach JSON as bare words."""
    values = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    sent = to_half(values, BF16) if dtype == "bf16" else values.astype(dtype.replace("fp", "float"))

    assert [None, None, None, 1] == answer(f"y:{dtype}[n]", sent)[0]["outputs"][0]["data"]
    with pytest.raises(RequestError, match="output `y` holds NaN"):
        answer(f"y:{dtype}[n]", sent, non_finite="error")


def test_non_finite_values_are_fine_in_binary():
    """Binary outputs may contain NaN and infinity."""
    values = np.array([np.nan, np.inf], np.float32)

    assert values.tobytes() == answer("y:fp32[n]", values, binary=True, non_finite="error")[1]


def test_finite_values_pass_the_strict_setting():
    """The strict setting accepts finite values."""
    assert [1.0] == answer("y:fp32[n]", np.ones(1, np.float32), non_finite="error")[0]["outputs"][0]["data"]


def test_binary_strings():
    """Each element is written as its length and its bytes."""
    values = np.array(["é", b"\xff", ""], object)
    tail = answer("y:bytes[n]", values, binary=True)[1]

    assert struct.pack("<I", 2) + "é".encode() + struct.pack("<I", 1) + b"\xff" + struct.pack("<I", 0) == tail


def test_bytes_that_are_not_text_need_binary():
    """JSON output of bytes that are not UTF-8 is refused."""
    with pytest.raises(RequestError, match="output `y` holds bytes that are not UTF-8"):
        answer("y:bytes[n]", np.array([b"\xff"], object))


def test_transposed_outputs_are_written_in_row_major_order():
    """The memory layout of an output does not matter."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T

    assert [0, 3, 1, 4, 2, 5] == answer("y:fp32[a,b]", values)[0]["outputs"][0]["data"]
    assert np.ascontiguousarray(values).tobytes() == answer("y:fp32[a,b]", values, binary=True)[1]


def test_classification_by_row():
    """Each row of a batch returns its largest elements as value:index, ties in order of index."""
    values = np.array([[0.5, 2.0, 1.0], [3.0, 3.0, -1.0]], np.float32)
    output = answer("y:fp32[batch,3]", values, classes=2, rows=4)[0]["outputs"][0]

    assert ("BYTES", [2, 2]) == (output["datatype"], output["shape"])
    assert ["2.000000:1", "1.000000:2", "3.000000:0", "3.000000:1"] == output["data"]


def test_classification_without_a_batch():
    """Without a batch axis all elements are ranked together; more classes than elements return all."""
    output = answer("y:uint8[2,2]", np.array([[1, 9], [200, 0]], np.uint8), classes=9)[0]["outputs"][0]

    assert ["200.000000:2", "9.000000:1", "1.000000:0", "0.000000:3"] == output["data"]


def test_classification_puts_nan_last():
    """NaN is never the best class."""
    values = np.array([np.nan, 1.0, -np.inf], np.float16)

    assert ["1.000000:1", "-inf:2", "nan:0"] == answer("y:fp16[n]", values, classes=3)[0]["outputs"][0]["data"]


def test_strings_cannot_be_classified():
    """Classification of strings is refused."""
    with pytest.raises(RequestError, match="cannot be ranked"):
        answer("y:bytes[n]", np.array(["a"], object), classes=1)
