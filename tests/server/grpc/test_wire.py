"""gRPC infer messages: parsing, errors, and answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demi.errors import InputError
from demi.server.grpc.inference import InferParameter, InferTensorContents, ModelInferRequest
from demi.server.grpc.wire import read_request, size_of, write_answer
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer
from demi.server.protocol.request import InferRequest, OutputRequest
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY
from demi.server.settings import ServeSettings
from demi.tensors import DType
from tests.server.fakes import DoublingSession, loaded, signature_of

ROW = signature_of("x:fp32[batch,3]", rows=8)


def asked(*tensors: dict[str, object], raw: tuple[bytes, ...] = (), **members: object) -> ModelInferRequest:
    """Return a message with these inputs."""
    return ModelInferRequest(inputs=list(tensors), raw_input_contents=list(raw), **members)


def x(datatype: str = "FP32", shape: tuple[int, ...] = (1, 3), **contents: object) -> dict[str, object]:
    """Return input x, with typed contents if given."""
    tensor: dict[str, object] = {"name": "x", "datatype": datatype, "shape": shape}
    return tensor | ({"contents": InferTensorContents(**contents)} if contents else {})


def read(message: ModelInferRequest, signature=ROW) -> InferRequest:
    return read_request(message, list(message.raw_input_contents), signature, NO_SHARED_MEMORY)


def refused(message: ModelInferRequest, signature=ROW) -> str:
    """Return the error message."""
    with pytest.raises(InputError) as caught:
        read(message, signature)
    return f"{caught.value.message}; {caught.value.hint}"


BYTES = np.array([[1, 2, 3]], np.float32).tobytes()


def test_raw_contents():
    """Raw contents are in the order of the inputs; by default all outputs are requested."""
    request = read(asked(x(), raw=(BYTES,), id="a"))

    assert [[1, 2, 3]] == request.feeds["x"].tolist()
    assert ("a", (OutputRequest("y", binary=True),)) == (request.id, request.outputs)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-1, 1]),
        ("INT32", "int_contents", [-(2**31), 1]),
        ("INT64", "int64_contents", [2**53 + 1, -1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -1.0]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
    ],
)
def test_typed_contents(datatype, field, values):
    """Typed contents are read from the field of their datatype."""
    signature = signature_of(f"x:{datatype}[n]")
    request = read(asked(x(datatype, (2,), **{field: values})), signature)

    assert values == request.feeds["x"].tolist()
    assert DType(datatype).numpy == request.feeds["x"].dtype


def test_scalars():
    """A tensor of rank 0 is accepted raw and typed."""
    signature = signature_of("x:INT64[]")
    raw = read(asked(x("INT64", ()), raw=(np.int64(5).tobytes(),)), signature)
    typed = read(asked(x("INT64", (), int64_contents=[5])), signature)

    assert [(5, ()), (5, ())] == [(each.feeds["x"][()], each.feeds["x"].shape) for each in (raw, typed)]


def test_typed_strings():
    """Typed BYTES are UTF-8 text."""
    request = read(asked(x("BYTES", (2,), bytes_contents=["grün".encode(), b""])), signature_of("x:BYTES[n]"))

    assert ["grün", ""] == request.feeds["x"].tolist()


def test_never_both_raw_and_typed():
    """A request with raw and typed contents is refused."""
    assert "`x` has contents, but the request also uses raw_input_contents" in refused(
        asked(x(fp32_contents=[1, 2, 3]), raw=(BYTES,))
    )


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_has_no_typed_contents(datatype):
    """FP16 and BF16 must be sent raw."""
    assert "no typed contents; send it in raw_input_contents" in refused(asked(x(datatype, fp32_contents=[1, 2, 3])))
    raw = read(asked(x(datatype), raw=(b"\0\0" * 3,)))

    assert [[0, 0, 0]] == raw.feeds["x"].tolist()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (asked(x(), raw=(BYTES[:-1],)), "`x` has 11 bytes, but FP32 of shape [1, 3] needs 12"),
        (asked(x(), raw=(BYTES, BYTES)), "1 extra entries after the inputs"),
        (asked(x(), x(), raw=(BYTES, BYTES)), "input `x` is sent twice"),
        (asked({"name": "z"}), "unknown input `z`"),
        (asked(), "input `x` is missing"),
        (asked(x("FP31"), raw=(BYTES,)), "`x` has an unknown or missing datatype"),
        (asked(x("INT32"), raw=(BYTES,)), "`x` has datatype INT32, expected FP32"),
        (asked(x(shape=(1, 2)), raw=(BYTES,)), "`x` has shape [1, 2], expected [batch, 3]"),
        (asked(x(shape=(-1, 3)), raw=(BYTES,)), "`x` needs a shape"),
        (asked(x(shape=(2**62,) * 5000), raw=(BYTES,)), "shape of input `x` is too large"),
        (asked(x(fp32_contents=[1, 2])), "`x` holds 2 elements, but its shape [1, 3] has 3"),
        (asked(x(int_contents=[1, 2, 3])), "`x` is FP32, but has int_contents; send fp32_contents"),
        (asked(x()), "`x` holds 0 elements"),
        (asked(x(), raw=(BYTES,), outputs=[{"name": "z"}]), "unknown output `z`"),
        (asked(x(), raw=(BYTES,), outputs=[{"name": "y"}, {"name": "y"}]), "output `y` is requested twice"),
        (asked(x(), raw=(BYTES,), parameters={"a": InferParameter()}), "parameter `a` of the request has no value"),
        (
            asked(x(), raw=(BYTES,), parameters={"timeout": InferParameter(string_param="1")}),
            "parameter `timeout` of the request must be a whole number",
        ),
        (
            asked(x(), raw=(BYTES,), parameters={"precision": InferParameter(string_param="int4")}),
            "use auto, half or fp32",
        ),
    ],
)
def test_invalid_requests(message, text):
    """The error names the tensor or parameter, and what was expected."""
    assert text in refused(message)


def test_one_raw_entry_for_each_input():
    """With raw contents, each input needs an entry."""
    both = signature_of("a:fp32[n]", "b:fp32[n]")
    message = asked(*({"name": name, "datatype": "FP32", "shape": [3]} for name in "ab"), raw=(BYTES,))

    assert "input `b` has no entry in raw_input_contents" in refused(message, both)


def test_out_of_range_values_are_refused():
    """`int_contents` beyond the range of INT8 are refused."""
    message = asked(x("INT8", (1,), int_contents=[128]))

    assert "holds 128, which is out of range for INT8" in refused(message, signature_of("x:INT8[n]"))


def test_parameters():
    """Known parameters are read, with integers of either width; unknown ones are ignored."""
    request = read(
        asked(
            x(),
            raw=(BYTES,),
            outputs=[{"name": "y", "parameters": {"classification": InferParameter(int64_param=2)}}],
            parameters={
                "timeout": InferParameter(uint64_param=250),
                "precision": InferParameter(string_param="fp32"),
                "triton_enable_empty_final_response": InferParameter(bool_param=True),
            },
        )
    )

    assert (250, "fp32") == (request.timeout_us, request.precision)
    assert (OutputRequest("y", binary=True, classes=2),) == request.outputs


def test_an_answer():
    """The answer has model, version, id and precision, and each output raw."""
    model = Model("double", "3", ServeSettings(max_queue=1))
    model.start(loaded(DoublingSession()))
    request = InferRequest({}, (OutputRequest("y", binary=True),), id="a")
    message = write_answer(model, request, Answer({"y": np.array([[1, 2, 3]], np.float32)}, "fp16"))
    model.close()

    assert ("double", "3", "a") == (message.model_name, message.model_version, message.id)
    assert "fp16" == message.parameters["precision"].string_param
    assert ("y", "FP32", [1, 3]) == (
        message.outputs[0].name,
        message.outputs[0].datatype,
        list(message.outputs[0].shape),
    )
    assert [BYTES] == list(message.raw_output_contents)


def test_the_size_of_a_message():
    """The size that decides whether another thread parses a message."""
    message = asked(x(), raw=(BYTES,))

    assert 12 == size_of(message, [BYTES])
    assert 24 == size_of(asked(x(fp32_contents=[1, 2, 3])), [])


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(["x", "z", ""]),
    datatype=st.sampled_from([*(dtype.value for dtype in DType), "", "fp32"]),
    shape=st.lists(st.sampled_from([0, 1, 3, -1, 2**40, 2**62]), max_size=4),
    raw=st.lists(st.binary(max_size=16), max_size=2),
    contents=st.none() | st.builds(lambda v: {"fp32_contents": v}, st.lists(st.floats(width=32), max_size=4)),
)
def test_arbitrary_messages(name, datatype, shape, raw, contents):
    """Arbitrary messages are read or raise a client error."""
    tensor = {"name": name, "datatype": datatype, "shape": shape}
    message = asked(tensor | ({"contents": contents} if contents else {}), raw=tuple(raw))
    try:
        request = read(message)
    except InputError:
        return
    assert ROW.inputs[0].dtype.numpy == request.feeds["x"].dtype
