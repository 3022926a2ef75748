"""OpenVINO sessions behave like others: outputs, types, threads, stopping, and errors with a hint."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from demi.errors import InferenceError, SourceError, StoppedError, TensorError
from demi.runtime.base import CPU, stage, stop
from demi.runtime.onnxruntime import session as onnxruntime
from demi.runtime.openvino.executed import products_in
from demi.runtime.openvino.options import OvSettings
from demi.runtime.openvino.session import capabilities, open_session, open_sessions, openvino_version
from demi.tensors import DType, parse_spec
from tests.server.bundles import FRAGILE, SCALE, serialized

needs_openvino = pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")
FP32 = OvSettings("f32", threads=1)
TYPED = OvSettings("dynamic", threads=1)

SHARED = """shared (float[batch, 3] x) => (float[batch, 3] y, float[batch, 3] z)
<float one = {1.0}>
{ y = Add(x, one)
  z = Mul(y, y) }"""

MATCHED = """matched (float[n, 4] x, float[4, n] w) => (float[n, n] y) { y = MatMul(x, w) }"""

HALVES = """halves (float16[n, 2] a, bfloat16[n, 2] b) => (float16[n, 2] c, bfloat16[n, 2] d, float[n, 2] e)
{ c = Add(a, a)
  d = Add(b, b)
  e = Cast<to = 1>(b) }"""

KINDS = """kinds (bool[n] flag, int8[n] small, uint8[n] byte, int32[n] word, int64[n] long)
=> (bool[n] flag_out, int8[n] small_out, uint8[n] byte_out, int32[n] word_out, int64[n] long_out)
{ flag_out = Not(flag)
  small_out = Add(small, small)
  byte_out = Add(byte, byte)
  word_out = Add(word, word)
  long_out = Add(long, long) }"""

PRODUCT = (
    """product (float16[n, 64] x) => (float16[n, 64] y) <float16[64, 64] w = {WEIGHTS}> { y = MatMul(x, w) }""".replace(
        "WEIGHTS", ", ".join(["1"] * 64 * 64)
    )
)

LOOKED_UP = """looked_up (int64[n, m] ids) => (float[n, m, 2] y) <float[3, 2] table = {1, 2, 3, 4, 5, 6}>
{ [y] y = Gather(table, ids) }"""

PICK = """pick (int64[n] x) => (float[n] y) <float[3] w = {1, 2, 3}> { y = GatherElements(w, x) }"""
"""A model that fails for an index beyond the last."""

PICK_BETWEEN = """pick_between (float[n, n] x, int64[n, n] i) => (float[n, n] y)
{ a = MatMul(x, x)
  b = GatherElements(a, i)
  c = MatMul(b, x)
  y = MatMul(c, x) }"""

CHAIN = "chain (float[n, n] x) => (float[n, n] y) {{ {} y = Tanh(v{}) }}"
"""A chain of products, so that a run can be stopped between two of them."""


def chain(length: int) -> bytes:
    products = "".join(f"v{i + 1} = MatMul(v{i}, x) " for i in range(length)).replace("(v0,", "(x,")
    return serialized(CHAIN.format(products, length))


@needs_openvino
class TestRun:
    """From inputs to outputs."""

    def test_answers_as_onnxruntime_does(self):
        """Outputs equal those of ONNX Runtime."""
        feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
        expected = onnxruntime.open_session(serialized(SHARED)).run(feeds)

        found = open_session(serialized(SHARED), FP32).run(feeds)

        assert {name: array.tolist() for name, array in expected.items()} == {
            name: array.tolist() for name, array in found.items()
        }

    def test_named_outputs_alone(self):
        """Only the requested outputs are returned."""
        found = open_session(serialized(SHARED), FP32).run({"x": np.ones((1, 3), np.float32)}, ["z"])

        assert {"z": [[4.0, 4.0, 4.0]]} == {name: array.tolist() for name, array in found.items()}

    def test_half_inputs_and_outputs(self):
        """FP16 is float16, and BF16 is its bits in uint16."""
        feeds = {"a": np.array([[1.5, 2]], np.float16), "b": np.array([[0x3F80, 0x7F7F]], np.uint16)}

        found = open_session(serialized(HALVES), TYPED).run(feeds)

        assert [[3.0, 4.0]] == found["c"].tolist()
        assert [[0x4000, 0x7F80]] == found["d"].tolist()
        assert ["float16", "uint16", "float32"] == [str(found[name].dtype) for name in "cde"]

    def test_other_types(self):
        """Integers and booleans are passed in their own types."""
        feeds = {
            "flag": np.array([True, False]),
            "small": np.array([1, -2], np.int8),
            "byte": np.array([1, 100], np.uint8),
            "word": np.array([1, -(2**29)], np.int32),
            "long": np.array([1, -(2**29)], np.int64),
        }

        found = open_session(serialized(KINDS), FP32).run(feeds)

        expected = [[False, True], [2, -4], [2, 200], [2, -(2**30)], [2, -(2**30)]]
        assert expected == [array.tolist() for array in found.values()]
        assert [array.dtype for array in feeds.values()] == [array.dtype for array in found.values()]

    @pytest.mark.parametrize(
        "model", [SCALE, "m (float[n, 4] x) => (float[n, n] y) { t = Transpose(x) y = MatMul(x, t) }"]
    )
    def test_no_rows(self, model):
        """An empty batch has an empty output."""
        session = open_session(serialized(model), FP32)

        found = session.run({"x": np.ones((0, session.inputs[0].shape[1]), np.float32)})

        assert 0 == found["y"].size

    def test_answers_outlive_the_next_run(self):
        """Returned outputs are copies, although the request is reused."""
        session = open_session(serialized(SCALE), FP32)
        first = session.run({"x": np.ones((1, 3), np.float32)})["y"]
        session.run({"x": np.zeros((1, 3), np.float32)})

        assert [[2.0, 3.0, 4.0]] == first.tolist()

    @pytest.mark.parametrize(
        "x",
        [np.broadcast_to(np.float32(1), (2, 3)), np.ones((3, 2), np.float32).T, np.ones((4, 3), np.float32)[::2]],
        ids=["read-only", "transposed", "every second row"],
    )
    def test_arrays_in_pieces(self, x):
        """Read-only and non-contiguous arrays have the same outputs and are not changed."""
        assert [[2.0, 3.0, 4.0]] * 2 == open_session(serialized(SCALE), FP32).run({"x": x})["y"].tolist()

    def test_many_threads(self):
        """Each thread gets the outputs of its own inputs."""
        session = open_session(serialized(SCALE), FP32)
        found: dict[int, list[float]] = {}

        def ask(number: int) -> None:
            for _ in range(50):
                found[number] = session.run({"x": np.full((1, 3), number, np.float32)})["y"][0].tolist()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        expected = open_session(serialized(SCALE), FP32)
        assert {n: expected.run({"x": np.full((1, 3), n, np.float32)})["y"][0].tolist() for n in range(8)} == found

    def test_staged_inputs(self):
        """Two batches can be staged at once."""
        session = open_session(serialized(SCALE), FP32)
        first, second = (stage(session, {"x": np.full((1, 3), value, np.float32)}) for value in (1, 2))

        assert ([[2.0, 3.0, 4.0]], [[4.0, 6.0, 8.0]]) == (first(None)["y"].tolist(), second(None)["y"].tolist())

    def test_a_stopped_run(self):
        """A stopped run raises StoppedError, and later runs are correct, with other shapes as well."""
        session = open_session(chain(300), FP32)
        x = np.eye(400, dtype=np.float32)
        session.run({"x": x[:1, :1]})
        outcome: list[object] = []

        def ask() -> None:
            try:
                outcome.append(session.run({"x": x}))
            except StoppedError as error:
                outcome.append(error.message)

        thread = threading.Thread(target=ask)
        thread.start()
        while thread.is_alive():
            assert stop(session)

        assert ["the run was stopped"] == outcome
        np.testing.assert_allclose(session.run({"x": x[:2, :2]})["y"], np.tanh(x[:2, :2]), rtol=1e-5)

    def test_good_inputs_after_bad_ones_of_another_shape(self):
        """A failed run does not affect the next one, with inputs of another shape."""
        session = open_session(serialized(PICK_BETWEEN), FP32)
        eye, first = np.eye(5, dtype=np.float32), np.zeros((5, 5), np.int64)
        for size in (5, 2, 3):
            with pytest.raises(InferenceError):
                session.run({"x": eye, "i": first + 9})

            found = session.run({"x": eye[:size, :size], "i": first[:size, :size]})["y"]
            assert [[1.0] + [0.0] * (size - 1)] * size == found.tolist()

    def test_sessions_of_one_model(self):
        """Sessions of one model share the compiled model."""
        sessions = open_sessions(serialized(SCALE), FP32, count=2)

        assert [[[2.0, 3.0, 4.0]]] * 2 == [
            each.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() for each in sessions
        ]

    def test_executed_precision(self):
        """The typed model's product runs in the model's precision."""
        if "FP16" not in capabilities():
            pytest.skip("OpenVINO computes nothing in FP16 on this CPU")
        session = open_session(serialized(PRODUCT), TYPED)
        session.run({"x": np.ones((2, 64), np.float16)})

        assert (1, 1) == products_in(session.executed, "f16")


@needs_openvino
class TestSpecs:
    """Specs of a session's tensors."""

    def test_generated_names_of_axes(self):
        """Free axes without names get generated ones."""
        session = open_session(serialized(SCALE), FP32)

        assert (("x", DType.FP32, [-1, 3]), CPU) == (
            (session.inputs[0].name, session.inputs[0].dtype, session.inputs[0].wire_shape),
            session.device,
        )

    def test_given_names_of_axes(self):
        """Names of axes can be passed, and axes of one name must agree."""
        specs = ((parse_spec("x:fp32[batch,4]"), parse_spec("w:fp32[4,batch]")), (parse_spec("y:fp32[batch,batch]"),))
        session = open_session(serialized(MATCHED), FP32, specs)

        assert specs == (session.inputs, session.outputs)
        with pytest.raises(TensorError, match="axis `batch`"):
            session.run({"x": np.ones((2, 4), np.float32), "w": np.ones((4, 3), np.float32)})

    def test_other_tensors_than_given(self):
        """A model with other tensors than described is refused."""
        with pytest.raises(SourceError, match="OpenVINO found the inputs x in the model, and not other:FP32"):
            open_session(serialized(SCALE), FP32, ((parse_spec("other:fp32[n,3]"),), (parse_spec("y:fp32[n,3]"),)))


@needs_openvino
class TestErrors:
    """Errors name the problem and the next step."""

    @pytest.mark.parametrize(
        ("model", "why"),
        [
            ("t (string[n] x) => (string[n] y) { y = Identity(x) }", "`x` holds strings"),
            (
                "t (double[n] x) => (double[n] y) { y = Neg(x) }",
                "`x` holds FP64, which its CPU plugin computes in FP32",
            ),
            ("t (uint64[n] x) => (uint64[n] y) { y = Identity(x) }", "`x` holds UINT64"),
            (FRAGILE, "`y` has any number of axes"),
        ],
    )
    def test_models_that_are_left_to_onnxruntime(self, model, why):
        """Models that OpenVINO cannot run are refused with the reason, and the runtime that can."""
        with pytest.raises(SourceError, match=why) as caught:
            open_session(serialized(model), FP32)

        assert "--runtime onnxruntime" in str(caught.value.hint)

    def test_a_file_that_is_not_a_model(self, tmp_path):
        """The error of a file that is not a model names it."""
        (tmp_path / "m.onnx").write_bytes(b"nothing of the kind")
        with pytest.raises(SourceError, match="cannot compile") as caught:
            open_session(tmp_path / "m.onnx", FP32)

        assert str(tmp_path / "m.onnx") == caught.value.where

    def test_inputs_that_do_not_fit(self):
        """Inputs that do not fit are refused before OpenVINO gets them."""
        with pytest.raises(TensorError, match="shape"):
            open_session(serialized(SCALE), FP32).run({"x": np.ones((1, 4), np.float32)})

    @pytest.mark.parametrize("value", [2**40, -(2**31) - 1])
    def test_integers_beyond_32_bits(self, value):
        """Integers beyond 32 bits are refused, because OpenVINO would truncate them silently."""
        session = open_session(serialized("t (int64[n] x) => (int64[n] y) { y = Neg(x) }"), FP32)

        with pytest.raises(
            TensorError, match=f"holds {value}, and OpenVINO computes with this model's integers exactly up to"
        ):
            session.run({"x": np.array([1, value])})

    def test_a_run_that_fails(self):
        """Inputs with inconsistent shapes fail with OpenVINO's message."""
        session = open_session(
            serialized("t (float[n, 4] x, float[m, k] w) => (float[n, k] y) { y = MatMul(x, w) }"), FP32
        )

        with pytest.raises(TensorError, match=r"the model does not take inputs of these shapes: .*MatMul"):
            session.run({"x": np.ones((2, 4), np.float32), "w": np.ones((5, 2), np.float32)})

    @pytest.mark.parametrize("value", [3, -4, 2**31 - 1])
    def test_ids_beyond_a_table(self, value):
        """OpenVINO would return zeros for ids beyond a table; the error is a client error in a server."""
        session = open_session(serialized(LOOKED_UP), FP32)
        good = session.run({"ids": np.array([[0, -1]])})["y"]

        with pytest.raises(
            InferenceError, match=rf"Name:'y'.* idx={value} must be within the inclusive range \[-3,2\]"
        ):
            session.run({"ids": np.array([[0, value]])})
        assert [[[1.0, 2.0], [5.0, 6.0]]] == good.tolist()

    @pytest.mark.parametrize("threads", [1, 2])
    def test_values_that_fail(self, threads):
        """Values that fail raise OpenVINO's message, also with one thread, and the next run is correct."""
        session = open_session(serialized(PICK), OvSettings("f32", threads=threads))
        for _ in range(3):
            with pytest.raises(InferenceError, match=r"OpenVINO failed: .*exceed data size"):
                session.run({"x": np.array([0, 2, 5])})

        assert [1.0, 3.0] == session.run({"x": np.array([0, 2])})["y"].tolist()

    @pytest.mark.parametrize("columns", [1, 400])
    def test_columns_that_the_weights_do_not_have(self, columns):
        """Columns without weights are refused: a kernel would read memory beyond the input."""
        model = "t (float[n, j] x) => (float[n, 2] y) <float[2, 2] w = {1, 1, 1, 1}> { y = MatMul(x, w) }"
        session = open_session(serialized(model), FP32)
        good = session.run({"x": np.ones((3, 2), np.float32)})["y"]

        with pytest.raises(TensorError, match="the model does not take inputs of these shapes"):
            session.run({"x": np.ones((2, columns), np.float32)})
        assert [[2.0, 2.0]] * 3 == good.tolist()


def test_without_openvino():
    """Without OpenVINO the error names the extra."""
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from demi.errors import PackageError\n"
        "from demi.runtime.openvino.session import openvino_version, require_openvino\n"
        "try:\n    require_openvino()\nexcept PackageError as error:\n    print(openvino_version(), error.hint)"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "None install it with: pip install 'demi-inference[openvino]'\n" == answer
