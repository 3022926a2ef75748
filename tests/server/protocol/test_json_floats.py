"""Flat lists of floats take a faster parser, which must not be noticed by anything but its speed."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.errors import InputError
from demi.server.protocol.json_message import read_message
from demi.server.protocol.json_tensors import read_json
from demi.server.protocol.schemas import FloatInput
from demi.tensors import DType

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = FLOATS | st.floats(-65504, 65504, width=16) | st.integers(-(2**70), 2**70)
ANYTHING = NUMBERS | st.sampled_from([True, None, "1", [1.0], 1e39, 65520.0, 2**1100])
DATATYPES = ["FP16", "FP32", "FP64", "BF16", "INT64", "FP8"]


def text_of(data: list[object], datatype: str = "FP32") -> bytes:
    """Return a request for one input `x`; integers of any size, which orjson refuses, are written as they are."""
    items = ",".join(str(item) if type(item) is int else orjson.dumps(item).decode() for item in data)
    return b'{"inputs":[{"name":"x","shape":[%d],"datatype":"%s","data":[%s]}]}' % (
        len(data),
        datatype.encode(),
        items.encode(),
    )


def outcome(text: bytes, *, floats: bool) -> tuple[str, bytes] | str:
    """Return dtype and bytes of the input in a request, or the error."""
    try:
        (given,) = read_message(text, floats=floats).inputs
        dtype = DType(given.datatype)
        array = read_json(given.data, dtype, tuple(given.shape), "x", checked=isinstance(given, FloatInput))
    except (InputError, ValueError) as error:  # ValueError: a datatype that does not exist
        return str(error)
    return str(array.dtype), array.tobytes()


@given(st.lists(NUMBERS, max_size=20) | st.lists(ANYTHING, max_size=5), st.sampled_from(DATATYPES))
def test_both_parsers_agree(data, datatype):
    """Whatever a list holds, both parsers return the same bits or the same error."""
    text = text_of(data, datatype)

    assert outcome(text, floats=False) == outcome(text, floats=True)


@pytest.mark.parametrize("text", [text_of([1.0])[:-1], text_of([1.0]).replace(b"1.0", b"NaN"), b"[]", b""])
def test_both_parsers_agree_beyond_json(text):
    """So they do on damaged JSON and on NaN."""
    assert outcome(text, floats=False) == outcome(text, floats=True)


def test_floats_are_checked_by_the_parser():
    """A flat list of numbers is known to hold nothing but floats, so that nothing checks its elements again."""
    (given,) = read_message(text_of([1, 2.5]), floats=True).inputs

    assert isinstance(given, FloatInput)
    assert [1.0, 2.5] == given.data
    assert [float, float] == [type(item) for item in given.data]


@pytest.mark.parametrize(("data", "datatype"), [([[1.0]], "FP32"), ([True], "FP32"), ([1], "INT64")])
def test_anything_else_is_not(data, datatype):
    """Nested lists, booleans and integer datatypes are left to the checks for all datatypes."""
    (given,) = read_message(text_of(data, datatype), floats=True).inputs

    assert not isinstance(given, FloatInput)
