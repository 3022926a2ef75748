"""Specs of inputs and outputs, and checks of arrays against them."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.errors import InputError, TensorError
from demi.tensors import DType, TensorSpec, check_feeds, parse_spec

X = TensorSpec("x", DType.FP32, ("batch", 3))


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


class TestDType:
    """Names of element types."""

    @pytest.mark.parametrize("text", ["FP32", "float32", "float", "tensor(float)", " Float32 "])
    def test_parse_takes_any_name_people_use(self, text):
        """A dtype may be written as in the protocol, NumPy or ONNX."""
        assert DType.FP32 is DType.parse(text)

    def test_parse_refuses_an_unknown_name(self):
        """The error of an unknown dtype quotes it and lists the known ones."""
        with pytest.raises(InputError, match="unknown dtype `float8`") as caught:
            DType.parse("float8")
        assert "float16" in caught.value.hint

    @pytest.mark.parametrize("dtype", list(DType), ids=lambda dtype: dtype.value)
    def test_onnx_number_and_back(self, dtype):
        """Every dtype is restored from its ONNX number."""
        assert dtype is DType.from_onnx(dtype.onnx)

    def test_unknown_onnx_number_is_an_error(self):
        """complex64 (14) is not supported."""
        with pytest.raises(TensorError, match="element type 14"):
            DType.from_onnx(14)

    @pytest.mark.parametrize("dtype", [each for each in DType if each is not DType.BF16], ids=lambda dtype: dtype.value)
    def test_numpy_and_back(self, dtype):
        """Every dtype except BF16 is restored from its NumPy dtype."""
        assert dtype is DType.from_numpy(dtype.numpy)

    def test_bf16_is_never_guessed(self):
        """BF16 is passed as uint16, and a uint16 array is UINT16."""
        assert DType.UINT16 is DType.from_numpy(DType.BF16.numpy)

    @pytest.mark.parametrize("dtype", ["S3", "U3", "O"])
    def test_strings_of_any_kind_are_bytes(self, dtype):
        """Strings, bytes and objects are all BYTES."""
        assert DType.BYTES is DType.from_numpy(np.dtype(dtype))

    def test_complex_array_is_an_error(self):
        """An unsupported dtype is named in the error."""
        with pytest.raises(TensorError, match="complex64"):
            DType.from_numpy(np.dtype(np.complex64))

    def test_half_types(self):
        """Two dtypes are half, four are float."""
        assert {DType.FP16, DType.BF16} == {dtype for dtype in DType if dtype.is_half}
        assert {DType.FP16, DType.BF16, DType.FP32, DType.FP64} == {dtype for dtype in DType if dtype.is_float}


class TestParseSpec:
    """`name:dtype[dims]` on the command line."""

    @pytest.mark.parametrize(
        ("text", "spec"),
        [
            ("ids:int64[batch,seq]", TensorSpec("ids", DType.INT64, ("batch", "seq"))),
            ("x[batch, 784]", TensorSpec("x", DType.FP32, ("batch", 784))),
            ("x:float16[]", TensorSpec("x", DType.FP16, ())),
            (" a.b/c:bool[2] ", TensorSpec("a.b/c", DType.BOOL, (2,))),
            ("x:0:float32[n,4]", TensorSpec("x:0", DType.FP32, ("n", 4))),
            ("x:0[4]", TensorSpec("x:0", DType.FP32, (4,))),
            ("in[0]:int64[n]", TensorSpec("in[0]", DType.INT64, ("n",))),
            ("вход 1[?,2]", TensorSpec("вход 1", DType.FP32, ("вход 1_axis0", 2))),
        ],
    )
    def test_good(self, text, spec):
        """Names, dtypes and dimensions are read; the dtype defaults to float32."""
        assert spec == parse_spec(text)

    @pytest.mark.parametrize("text", ["x", "x:float32", "[2]", ":float32[2]", "x:float32[2", "x[2]y", ""])
    def test_text_of_another_form(self, text):
        """The error of a malformed text quotes it, with an example."""
        with pytest.raises(InputError, match="as an input") as caught:
            parse_spec(text)
        assert f"`{text}`" in str(caught.value)
        assert "x:float32[batch,784]" in caught.value.hint

    @pytest.mark.parametrize("dims", ["0", "-1", "2,", "2,,3", "batch,0"])
    def test_bad_dimension(self, dims):
        """A dimension is a positive number or a name."""
        with pytest.raises(InputError, match="cannot read the shape"):
            parse_spec(f"x[{dims}]")

    @given(st.lists(st.integers(1, 9999) | st.sampled_from(["batch", "seq"]), max_size=4), st.sampled_from(DType))
    def test_text_of_a_spec_is_read_back(self, dims, dtype):
        """The text of a spec is accepted on the command line."""
        spec = TensorSpec("x", dtype, tuple(dims))

        assert spec == parse_spec(str(spec))

    @given(st.text(max_size=20) | st.text(alphabet="x:[]-1,0²٣ ", max_size=12))
    def test_any_other_text_is_an_input_error(self, text):
        """Any malformed text raises InputError."""
        with contextlib.suppress(InputError):
            assert isinstance(parse_spec(text), TensorSpec)

    def test_wire_shape_writes_free_axes_as_minus_one(self):
        """Free axes are -1, since the protocol has no names for them."""
        assert [-1, 3] == X.wire_shape


class TestCheckFeeds:
    """Arrays against specs."""

    def test_good_feeds_come_back(self):
        """Arrays that fit are returned unchanged, in the model's order."""
        feeds = {"mask": zeros(2, dtype=np.bool_), "x": zeros(2, 3)}

        checked = check_feeds([X, TensorSpec("mask", DType.BOOL, ("batch",))], feeds)

        assert ["x", "mask"] == list(checked)
        assert checked["x"] is feeds["x"]

    def test_missing_input(self):
        """A missing input is named, and all inputs are listed."""
        with pytest.raises(TensorError, match="input `x` is missing") as caught:
            check_feeds([X], {})
        assert "x:FP32[batch,3]" in caught.value.hint

    def test_unknown_input(self):
        """An input that the model does not have is named."""
        with pytest.raises(TensorError, match="unknown input `z`"):
            check_feeds([X], {"x": zeros(2, 3), "z": zeros(1)})

    @pytest.mark.parametrize("shape", [(2,), (2, 3, 1), (2, 4), ()])
    def test_shape_that_does_not_fit(self, shape):
        """Another rank or another fixed size is an error that quotes both shapes."""
        with pytest.raises(TensorError, match=r"expected \[batch, 3\]"):
            check_feeds([X], {"x": zeros(*shape)})

    @pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
    def test_another_dtype_is_an_error(self, dtype):
        """Without `cast_floats` a dtype must be the declared one."""
        with pytest.raises(TensorError, match="expected FP32"):
            check_feeds([X], {"x": zeros(2, 3, dtype=dtype)})

    @pytest.mark.parametrize("dtype", [np.int32, np.bool_])
    def test_integers_are_never_cast_to_floats(self, dtype):
        """`cast_floats` casts only floats."""
        with pytest.raises(TensorError, match="has dtype"):
            check_feeds([X], {"x": zeros(2, 3, dtype=dtype)}, cast_floats=True)

    def test_floats_are_never_cast_to_bf16(self):
        """A float array is not cast to BF16, which is passed as bits."""
        with pytest.raises(TensorError, match="expected BF16"):
            check_feeds([TensorSpec("x", DType.BF16, (1,))], {"x": zeros(1)}, cast_floats=True)

    def test_free_axes_of_one_name_share_their_size(self):
        """The error for two sizes of one axis names both inputs."""
        mask = TensorSpec("mask", DType.FP32, ("batch",))
        with pytest.raises(TensorError, match="input `mask` has 5 for axis `batch`, but input `x` has 2"):
            check_feeds([X, mask], {"x": zeros(2, 3), "mask": zeros(5)})

    def test_free_axes_within_one_input(self):
        """An axis that occurs twice in one input must have one size."""
        square = TensorSpec("a", DType.FP32, ("n", "n"))
        with pytest.raises(TensorError, match="axis `n`"):
            check_feeds([square], {"a": zeros(2, 3)})

    def test_free_axes_of_other_names_do_not(self):
        """Axes with different names may have different sizes."""
        specs = [TensorSpec("q", DType.FP32, ("queries", 2)), TensorSpec("d", DType.FP32, ("documents", 2))]

        assert ["q", "d"] == list(check_feeds(specs, {"q": zeros(2, 2), "d": zeros(5, 2)}))

    def test_cast_to_half_rounds(self):
        """A float array of another width is cast to the declared type."""
        half = TensorSpec("x", DType.FP16, (1,))

        checked = check_feeds([half], {"x": np.array([0.1], np.float32)}, cast_floats=True)

        assert np.float16(0.1) == checked["x"][0]
        assert np.float16 == checked["x"].dtype

    @pytest.mark.parametrize("value", [70_000.0, -70_000.0, 65_520.0])
    def test_cast_to_half_never_makes_an_infinity(self, value):
        """A finite value beyond half raises an error with its magnitude."""
        half = TensorSpec("x", DType.FP16, (2,))
        with pytest.raises(TensorError, match=f"holds {abs(value):g}, which is beyond the range of FP16"):
            check_feeds([half], {"x": np.array([1.0, value], np.float32)}, cast_floats=True)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_cast_keeps_what_is_not_finite(self, value):
        """NaN and infinities that the caller sent are kept."""
        half = TensorSpec("x", DType.FP16, (2,))

        checked = check_feeds([half], {"x": np.array([1.0, value])}, cast_floats=True)

        np.testing.assert_array_equal(np.array([1.0, value], np.float16), checked["x"])

    def test_strings_of_any_kind_fit_bytes(self):
        """A BYTES input accepts NumPy's strings as objects."""
        spec = TensorSpec("s", DType.BYTES, (2,))

        assert np.dtype(object) == check_feeds([spec], {"s": np.array(["a", "b"])})["s"].dtype
