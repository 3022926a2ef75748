"""The cache of JSON requests without their numbers: a request that it knows is the one that parsing finds."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.errors import InputError
from demi.server.errors import BodyTooLargeError
from demi.server.protocol import json_layouts
from demi.server.protocol.body import read_request
from demi.server.protocol.header_cache import HeaderCache
from demi.server.protocol.json_layouts import MAX_LAYOUT_BYTES, MAX_LAYOUTS
from demi.server.protocol.signature import Signature
from tests.server.fakes import signature_of

SIGNATURES = {
    dtype: signature_of(f"x:{dtype.lower()}[n,k]", outputs=["y:fp32[n]", "z:fp32[n]"])
    for dtype in ("FP16", "FP32", "FP64", "BF16", "INT64")
}
SIGNATURE = SIGNATURES["FP32"]

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-60000, 60000) | st.integers(-(2**70), 2**70)
ANYTHING = NUMBERS | st.sampled_from([True, False, None, "1", "]", "[1]", [1.0], {"data": [1]}, 1e39, 65520.0])
FORMS = (
    '{"inputs":[%s]}',
    '{"id":"","inputs":[%s],"parameters":{"timeout":7}}',
    '{"inputs" : [ %s ],"outputs":[{"name":"z"}]}',
)


def body_of(
    items: list[object], dtype: str = "FP32", form: str = FORMS[0], depth: int = 0, count: int | None = None
) -> bytes:
    """Return a request for one input; integers of any size, which orjson refuses, are written as they are."""
    data = ",".join(str(item) if type(item) is int else orjson.dumps(item).decode() for item in items)
    shape = [1, len(items) if count is None else count]
    tensor = f'{{"name":"x","shape":{shape},"datatype":"{dtype}","data":{"[" * depth}[{data}]{"]" * depth}}}'
    return (form % tensor).encode()


def outcome(body: bytes, signature: Signature, cache: HeaderCache | None) -> object:
    """Return everything that a request says, or its error."""
    try:
        found = read_request(body, None, signature, cache=cache)
    except InputError as error:
        return type(error), str(error)
    feeds = [(name, each.dtype, each.shape, each.tobytes()) for name, each in found.feeds.items()]
    return feeds, found.outputs, found.id, found.timeout_us, found.precision


@given(
    st.lists(st.lists(NUMBERS, max_size=3) | st.lists(ANYTHING, max_size=3), min_size=2, max_size=6),
    st.sampled_from(list(SIGNATURES)),
    st.sampled_from(FORMS),
    st.integers(0, 2),
)
def test_a_known_layout_gives_the_same_request(lists, dtype, form, depth):
    """Whatever a list holds, a request means the same, or has the same error, after others of its layout."""
    cache = HeaderCache()
    for items in lists:
        for count in (None, 2):
            body = body_of(items, dtype, form, depth, count)

            assert outcome(body, SIGNATURES[dtype], None) == outcome(body, SIGNATURES[dtype], cache)


def is_known(first: bytes, then: bytes, signature: Signature = SIGNATURE) -> bool:
    """Return whether the layout of a request is known after another one."""
    cache = HeaderCache()
    read_request(first, None, signature, cache=cache)
    return cache.layouts.read(then, 2**63) is not None


@pytest.mark.parametrize("depth", [0, 1])
def test_other_numbers_are_read_alone(depth):
    """Flat, or as the only row."""
    assert is_known(body_of([1, 2.5], depth=depth), body_of([-3.5, 4], depth=depth))


@pytest.mark.parametrize(
    "then",
    [
        body_of([1, 2], form=FORMS[1]),
        body_of([1]),
        body_of([1], count=2),
        body_of([1, True], count=2),
        b"{}",
        b"",
        b"[",
        b'"data"[]',
    ],
    ids=["another form", "another shape", "too few", "a boolean", "nothing", "empty", "open", "no request"],
)
def test_other_texts_are_not_known(then):
    """They are parsed whole."""
    assert not is_known(body_of([1, 2]), then)


TRAPS = {
    "an id": b'{"id":"a","inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[1]}]}',
    "several rows": b'{"inputs":[{"name":"x","shape":[2,1],"datatype":"FP32","data":[[1],[2]]}]}',
    "a text of that name": b'{"a":"data","b":[1],"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[0.5]}]}',
    "another member of that name": b'{"data":[1],"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[0.5]}]}',
    "sent twice": b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[1],"data":[0.5]}]}',
    "in a parameter": b'{"inputs":[{"parameters":{"data":[1]},"name":"x","shape":[1,1],"datatype":"FP32","data":[0.5]}]}',
    "a long text": b'{"a":"%b","inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[1]}]}'
    % (b"b" * MAX_LAYOUT_BYTES),
}


@pytest.mark.parametrize("text", TRAPS.values(), ids=TRAPS)
def test_where_the_numbers_are_must_be_certain(text):
    """A text is not kept if its first list after the word "data" is not all that its input holds."""
    try:
        assert not is_known(text, text)
    except InputError:
        assert b"parameters" in text


def test_two_probes_are_needed(monkeypatch):
    """With one, a number elsewhere that equals it would be taken for the data."""
    text = TRAPS["another member of that name"]
    monkeypatch.setattr(json_layouts, "_PROBES", (0.5,))

    assert is_known(text, text)


def test_the_memory_of_values_stays_limited():
    """A known layout does not let more numbers in than an unknown one."""
    cache = HeaderCache()
    body = body_of([1.5] * 1000)
    read_request(body, None, SIGNATURE, cache=cache)

    with pytest.raises(BodyTooLargeError):
        read_request(body, None, SIGNATURE, cache=cache, most_parsed=1000)


def test_the_oldest_layout_makes_room():
    """The cache keeps a fixed number of layouts."""
    cache = HeaderCache()
    bodies = [body_of([0] * count) for count in range(1, MAX_LAYOUTS + 2)]
    for body in bodies:
        read_request(body, None, SIGNATURE, cache=cache)

    assert [False, True, True] == [cache.layouts.read(bodies[at], 2**63) is not None for at in (0, 1, -1)]
